"""The BERT encoder among a folder's tensors: which parameter each one is, and that all are there.

What no parameter takes is not ignored: a scale beside codes, a mask beside weights or half of an
adapter changes what the encoder computes.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch

from bert.architecture import canonical_name, is_prunable
from bert.folders.stored_weights import StoredTensor, StoredWeights
from distributed.errors import BadInput

Shapes = Mapping[str, tuple[int, ...] | None]  # of each parameter; None is any shape

ENCODER = ("embeddings.", "encoder.", "pooler.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Stored once more by some writers: a copy of the parameter it is tied to.
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_LAYER = re.compile(r"(?:(?:module|_orig_mod|mlm|bert|base_model|model)\.)*encoder\.layer\.(\d+)\.")
# What stands in a weight's place, and how it becomes one weight again.
_STAND_INS = (
    (r"weight_orig|weight_mask", "make its pruning permanent with torch.nn.utils.prune.remove"),
    (r"weight_[guv]", "fold it with torch.nn.utils.remove_weight_norm or remove_spectral_norm"),
    (r"parametrizations\.", "fold it with torch.nn.utils.parametrize.remove_parametrizations"),
    (r"base_model\.|base_layer|lora_|modules_to_save",
     "merge the adapter with PEFT's merge_and_unload"),
    (r"q?weight_?(?:scale|packed|quant|zero)|qweight|qzeros|scales|SCB|absmax",
     "give the model that it was quantised from"),
)  # fmt: skip


def parameter_name(stored: str) -> str:
    """The parameter that a stored tensor of this name is, if any is."""
    name = canonical_name(stored)
    # The first BERT checkpoints have TensorFlow's names for LayerNorm.
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return TIED.get(name, name)


def group_by_parameter(tensors: Iterable[StoredTensor]) -> dict[str, list[StoredTensor]]:
    """The tensors of each parameter: more than one where copies of it are stored."""
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(parameter_name(tensor.name), []).append(tensor)
    return groups


def find_layers(tensors: Iterable[StoredTensor]) -> int:
    """How many encoder layers the names speak of, whole or not."""
    numbers = [int(match[1]) for tensor in tensors if (match := _LAYER.match(tensor.name))]
    return max(numbers, default=-1) + 1


def check_encoder(
    weights: StoredWeights, shapes: Shapes, *, is_needed: Callable[[str], bool]
) -> None:
    """Refuse tensors that are not the parameters of `shapes`; see the two functions it calls."""
    check_parameters(weights, shapes, is_needed=is_needed)
    refuse_strangers(weights, shapes)


def check_parameters(
    weights: StoredWeights, shapes: Shapes, *, is_needed: Callable[[str], bool]
) -> None:
    """Refuse parameters that are not there as they must be.

    Args:
        weights: of a Hugging Face folder.
        shapes: of the encoder's parameters by canonical name.
        is_needed: whether a parameter must be there.

    Raises:
        BadInput: one is missing, has another shape or is not a float.
    """
    stored = group_by_parameter(weights.tensors)
    for name, shape in shapes.items():
        if name not in stored and is_needed(name):
            raise BadInput(explain_missing(weights, name))
        for tensor in stored.get(name, ()):
            check_float(tensor)
            if shape is not None and tensor.shape != shape:
                raise BadInput(
                    f"{tensor.file} has {tensor.name} of shape {list(tensor.shape)}, and the "
                    f"model's dimensions ask for {list(shape)}: see to its config.json"
                )


def refuse_strangers(weights: StoredWeights, shapes: Shapes) -> None:
    """Refuse a tensor of the encoder that is no parameter of it."""
    for tensor in find_strangers(weights, shapes):
        raise BadInput(
            f"{tensor.file} has {tensor.name} ({tensor.dtype} {list(tensor.shape)}), which is no "
            f"parameter of BERT's encoder: {advise([tensor]) or 'give a plain BERT'}"
        )


def find_strangers(weights: StoredWeights, shapes: Shapes) -> list[StoredTensor]:
    """The tensors under the encoder that are neither parameters nor known buffers."""
    return [
        tensor
        for tensor in weights.tensors
        if (name := parameter_name(tensor.name)).startswith(ENCODER)
        and name not in shapes
        and not name.startswith(_BUFFERS)
    ]


def check_float(tensor: StoredTensor) -> None:
    """Refuse a tensor of codes."""
    if not tensor.is_float:
        raise BadInput(
            f"{tensor.file} has {tensor.name} as {tensor.dtype}, which is no floating-point "
            "weight: give the model that it was quantised from"
        )


def explain_missing(weights: StoredWeights, name: str) -> str:
    """One sentence: what is missing and what stands in its place."""
    module = name.rpartition(".")[0]
    others = [
        tensor
        for tensor in weights.tensors
        if f"{module}." in tensor.name and not tensor.name.endswith(f"{module}.bias")
    ]
    if not others and is_prunable(name):
        layer = module[: module.index(".", len("encoder.layer."))]
        fused = re.compile(rf"\b{re.escape(layer)}\..*(?:qkv|in_proj)", re.IGNORECASE)
        others = [tensor for tensor in weights.tensors if fused.search(tensor.name)]
    if not others:
        return f"{weights.folder} has no {name}: give a whole BERT"
    names = " and ".join(tensor.name for tensor in others[:2])
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    stand = "stands" if len(others) == 1 else "stand"
    advice = advise(others) or "give a folder that transformers' BertModel wrote"
    return f"{weights.folder} has no {name}: {names}{more} {stand} in its place, so {advice}"


def advise(tensors: Iterable[StoredTensor]) -> str | None:
    """How to make one weight of tensors that are parts of one; None where they are no parts."""
    for pattern, advice in _STAND_INS:
        if any(re.search(rf"(?:^|\.)(?:{pattern})", tensor.name) for tensor in tensors):
            return advice
    return None


def read_parameter(copies: list[StoredTensor]) -> torch.Tensor:
    """A parameter in fp32, whether it is stored once or more often.

    Raises:
        BadInput: its copies differ.
    """
    for tensor in copies:
        check_float(tensor)
    first = copies[0].read().float()
    for other in copies[1:]:
        if not torch.equal(other.read().float(), first):
            raise BadInput(explain_difference(copies[0], other))
    return first


def explain_difference(one: StoredTensor, other: StoredTensor) -> str:
    """One sentence about two tensors that are one parameter and differ."""
    for tensor in (one, other):
        if canonical_name(tensor.name) in TIED:
            return (
                f"{tensor.file} has a decoder of its own ({tensor.name}): only tied ones are "
                "supported"
            )
    return (
        f"{one.name} in {one.file} and {other.name} in {other.file} are the same parameter of "
        "BERT and differ: remove the wrong one"
    )
