"""The weights of BERT by name: one canonical name each, shapes, which are pruned, which decay.

A parameter has one canonical name, whatever wraps it: masks, digests, checkpoints, exports use it.
Imports neither torch nor transformers: a run's checks before its start need names and shapes only.
"""

import re
from typing import TYPE_CHECKING

from bert.configuration import ModelConfig

if TYPE_CHECKING:
    from torch import nn

# What stands before a parameter's name: DeepSpeed's and DDP's wrapper, torch.compile's, ours, and
# the attribute under which a model with a head keeps its BertModel.
_PREFIX = re.compile(r"^(?:(?:module|_orig_mod|mlm|bert)\.)+")
_PRUNABLE = re.compile(
    r"encoder\.layer\.\d+\."
    r"(?:attention\.self\.(?:query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)"
    r"\.weight"
)


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


def weight_shapes(config: ModelConfig, *, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a BertForMaskedLM by canonical name, in registration order."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.LayerNorm.weight"] = shapes[f"{name}.LayerNorm.bias"] = (width,)

    shapes["embeddings.word_embeddings.weight"] = (vocab_size, width)
    shapes["embeddings.position_embeddings.weight"] = (config.max_position_embeddings, width)
    shapes["embeddings.token_type_embeddings.weight"] = (2, width)
    norm("embeddings")
    for layer in (f"encoder.layer.{i}" for i in range(config.num_layers)):
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output")
        linear(f"{layer}.intermediate.dense", width, inner)
        linear(f"{layer}.output.dense", inner, width)
        norm(f"{layer}.output")
    shapes["cls.predictions.bias"] = (vocab_size,)  # the decoder's weight is the word embeddings
    linear("cls.predictions.transform.dense", width, width)
    norm("cls.predictions.transform")
    return shapes
