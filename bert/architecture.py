"""The weights of BERT by name: one canonical name each, shapes, which are pruned, which decay.

A parameter has one canonical name, whatever wraps it: masks, digests, checkpoints, exports use it.
Imports neither torch nor transformers: a run's checks before its start need names and shapes only.
"""

import re
from typing import TYPE_CHECKING

from bert.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

# What stands before a parameter's name: DeepSpeed's and DDP's wrapper, torch.compile's, ours, and
# the attribute under which a model with a head keeps its BertModel.
_PREFIX = re.compile(r"^(?:(?:module|_orig_mod|mlm|bert)\.)+")
# The prunable matrices of an encoder layer, and what people call them.
LAYER_MATRICES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
# The same, short enough for a cell of the heat map in TensorBoard.
SHORT_TITLES = {
    **LAYER_MATRICES,
    "attention.output.dense": "out",
    "intermediate.dense": "up",
    "output.dense": "down",
}
_PRUNABLE = re.compile(
    rf"encoder\.layer\.\d+\.(?:{'|'.join(map(re.escape, LAYER_MATRICES))})\.weight"
)
# The dimensions of ModelConfig and Hugging Face's names of them.
DIMENSIONS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
}
IGNORE_INDEX = -100  # the label of what is not to be predicted


def canonical_name(name: str) -> str:
    """A parameter's name in a bare BertModel; a head's parameter keeps the head's name.

    `module.mlm.bert.encoder.layer.0.output.dense.weight` is `encoder.layer.0.output.dense.weight`.
    """
    return _PREFIX.sub("", name)


def named_weights(module: "nn.Module") -> "list[tuple[str, nn.Parameter]]":
    """Every parameter of `module` under its canonical name, in registration order.

    A tied parameter comes once, under the name that is registered first (the word embeddings, not
    the decoder; the head's bias, not the decoder's).
    """
    weights: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        canonical = canonical_name(name)
        if canonical in weights:
            raise ValueError(f"two parameters have the canonical name {canonical}: rename one")
        weights[canonical] = parameter
    return list(weights.items())


def is_prunable(name: str) -> bool:
    """Whether the parameter of this canonical name is among the six weights of an encoder layer."""
    return _PRUNABLE.fullmatch(name) is not None


def uses_weight_decay(name: str) -> bool:
    """Whether AdamW decays the parameter of this canonical name: all but biases and LayerNorm."""
    return not name.endswith(".bias") and ".LayerNorm." not in name


Shapes = dict[str, tuple[int, ...]]


def weight_shapes(config: ModelConfig, *, vocab_size: int) -> Shapes:
    """Shape of every weight of a BertForMaskedLM by canonical name, in registration order."""
    width = config.hidden_size
    return {
        "embeddings.word_embeddings.weight": (vocab_size, width),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        **_norm("embeddings", width),
        **layer_shapes(config.num_layers, width=width, inner=config.intermediate_size),
        "cls.predictions.bias": (vocab_size,),  # the decoder's weight is the word embeddings
        **_linear("cls.predictions.transform.dense", width, width),
        **_norm("cls.predictions.transform", width),
    }


def layer_shapes(num_layers: int, *, width: int, inner: int) -> Shapes:
    """Shape of every weight of the encoder's layers by canonical name, in registration order."""
    shapes: Shapes = {}
    for layer in (f"encoder.layer.{i}" for i in range(num_layers)):
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{part}", width, width)
        shapes |= _linear(f"{layer}.attention.output.dense", width, width)
        shapes |= _norm(f"{layer}.attention.output", width)
        shapes |= _linear(f"{layer}.intermediate.dense", width, inner)
        shapes |= _linear(f"{layer}.output.dense", inner, width)
        shapes |= _norm(f"{layer}.output", width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}
