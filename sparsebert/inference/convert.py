"""to_sparse: a dense BERT in, the same model with a sparse encoder out."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertEncoder, BertModel

from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.layout import LAYER_NAMES, MATRIX_NAMES, Dimensions
from sparsebert.inference.library import load_kernel
from sparsebert.inference.module import SparseEncoder
from sparsebert.inference.packing import PackedReader, pack
from sparsebert.inference.quantize import (
    FP32,
    INT8,
    Int8Embedding,
    Int8Matrix,
    check_values,
    quantize_rows,
)

# From here on the dense model is as fast (benchmarks/inference.py, the plot over sparsities).
MOST_DENSITY = 0.5

Model = TypeVar("Model", bound=nn.Module)
_log = logging.getLogger(__name__)


def to_sparse(
    model: Model,
    fallback: bool = False,
    *,
    values: str = FP32,
    force: bool = False,
    keep_masks: Mapping[str, torch.Tensor] | None = None,
) -> Model:
    """Replace the encoder of the one BERT in `model` by a sparse one, in place.

    The model keeps its call and its outputs, and cannot be trained any more: it is set to eval()
    and requires_grad_(False).

    Args:
        model: any module that holds exactly one transformers BertModel, in fp32 on the CPU.
        fallback: without a compiled kernel leave the model dense, with a warning, instead of
            raising.
        values: of the weights. fp32 keeps every bit. int8 rounds the encoder's matrices and the
            word embeddings to 255 steps a row, and the encoder's activations to 255 steps a token:
            faster and smaller, with an error of some hundredths (docs/serving.md).
        force: convert a model that is too dense to gain anything.
        keep_masks: bool masks (True = kept) by the names of the encoder's matrices in BertModel,
            such as encoder.layer.0.output.dense.weight: weights that are kept although they are
            zero then survive save_sparse.

    Raises:
        BadInput: the model, or this machine, cannot do it; the message says what to change.
    """
    check_values(values)
    bert = find_bert(model)
    dimensions = check_encoder(bert)
    try:
        kernel = load_kernel()
    except KernelUnavailable as error:
        if not fallback:
            raise
        warnings.warn(f"the model stays dense: {error}", stacklevel=2)
        model.eval().requires_grad_(False)
        return model
    state = {name: tensor.detach() for name, tensor in bert.encoder.state_dict().items()}
    _check_density(state, force=force)
    masks = dict(keep_masks or {})

    def tensor(layer: int, name: str) -> torch.Tensor | Int8Matrix:
        found = state[f"layer.{layer}.{name}"]
        return quantize_rows(found) if values == INT8 and name in MATRIX_NAMES else found

    packed = pack(
        dimensions,
        tensor,
        keep_mask=lambda layer, name: masks.get(f"encoder.layer.{layer}.{name}"),
        compute_int8=kernel.has_int8,
    )
    table = None
    if values == INT8 and can_quantize_embeddings(model, bert):
        table = quantize_rows(bert.embeddings.word_embeddings.weight.detach())
    install(model, bert, packed, table)
    return model


def can_quantize_embeddings(model: nn.Module, bert: BertModel) -> bool:
    """Whether only the first layer uses the word embeddings; language models' last one does too."""
    table = bert.embeddings.word_embeddings
    if type(table) is not nn.Embedding:
        return False
    owners = [part for part in model.modules() if getattr(part, "weight", None) is table.weight]
    return owners == [table]


def install(
    model: nn.Module, bert: BertModel, packed: torch.Tensor, table: Int8Matrix | None = None
) -> None:
    """Put a sparse encoder and, if given, int8 word embeddings into `bert`, and call eval()."""
    model.eval().requires_grad_(False)
    bert.encoder = SparseEncoder(bert.config, packed)
    if table is not None:
        bert.embeddings.word_embeddings = Int8Embedding(table)
    reader = PackedReader(packed)
    if reader.is_rounded and not reader.is_int8:
        _log.warning(
            "this processor has no dot product of bytes (AVX-512 VNNI or AVX-VNNI): the int8 "
            "weights are computed in fp32, no faster than with values='fp32'"
        )


def find_bert(model: nn.Module) -> BertModel:
    """The one BertModel in `model`.

    Raises:
        BadInput: there is none, or more than one.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"a model is wanted, not a {type(model).__name__}")
    found = [part for part in model.modules() if isinstance(part, BertModel)]
    if len(found) != 1:
        raise BadInput(
            f"{type(model).__name__} holds {len(found)} BertModels, but exactly one is wanted: "
            + ("only BERT can be made sparse" if not found else "convert each on its own")
        )
    return found[0]


def check_encoder(bert: BertModel, *, check_tensors: bool = True) -> Dimensions:
    """The dimensions of an encoder that the kernel can compute.

    Args:
        bert: the model, its encoder dense.
        check_tensors: also look at every weight; not for a model without storage.

    Raises:
        BadInput: it cannot, by the name of what it cannot.
    """
    config = bert.config
    if isinstance(bert.encoder, SparseEncoder):
        raise BadInput("the model's encoder is sparse already")
    if type(bert.encoder) is not BertEncoder:
        raise BadInput(f"the model's encoder is a {type(bert.encoder).__name__}, not a BertEncoder")
    wanted: dict[str, Any] = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for field, value in wanted.items():
        found = getattr(config, field, value)
        if found != value:
            raise BadInput(f"config.{field} is {found!r}, but only {value!r} can be made sparse")
    dimensions = Dimensions(
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
        layer_norm_eps=config.layer_norm_eps,
    )
    if check_tensors:
        _check_tensors(bert.encoder, dimensions)
    return dimensions


def _check_tensors(encoder: BertEncoder, dimensions: Dimensions) -> None:
    """Every tensor of a plain encoder is there, fp32 on the CPU, and nothing else."""
    state = encoder.state_dict()
    names = {f"layer.{layer}.{name}" for layer in range(dimensions.layers) for name in LAYER_NAMES}
    odd = sorted(state.keys() ^ names)
    if odd:
        raise BadInput(
            f"encoder.{odd[0]} is {'unexpected' if odd[0] in state else 'missing'}: the encoder "
            "must be plain nn.Linear and nn.LayerNorm modules (merge adapters, and remove "
            "torch.nn.utils.prune's reparametrisation with prune.remove)"
        )
    for name, tensor in state.items():
        shape = dimensions.shape(name.split(".", 2)[2])
        if tuple(tensor.shape) != shape:
            raise BadInput(f"encoder.{name} is {list(tensor.shape)}, not {list(shape)}")
        if tensor.device.type != "cpu":
            raise BadInput(
                f'encoder.{name} is on {tensor.device}: move the model with model.to("cpu")'
            )
        if tensor.dtype != torch.float32:
            raise BadInput(
                f"encoder.{name} is {tensor.dtype}, but only float32 is exact: call model.float()"
            )
    for name, part in encoder.named_modules():
        is_plain = type(part).forward in (nn.Linear.forward, nn.LayerNorm.forward)
        if name.endswith(("dense", "LayerNorm", "query", "key", "value")) and not is_plain:
            raise BadInput(
                f"encoder.{name} is a {type(part).__name__}: merge adapters or dequantise first"
            )


def _check_density(state: Mapping[str, torch.Tensor], *, force: bool) -> None:
    matrices = [t for name, t in state.items() if name.split(".", 2)[2] in MATRIX_NAMES]
    weights = sum(tensor.numel() for tensor in matrices)
    density = sum(int(tensor.count_nonzero()) for tensor in matrices) / weights if weights else 0.0
    if density > MOST_DENSITY and not force:
        raise BadInput(
            f"the encoder's density is {density:.2f}: from {MOST_DENSITY} on nothing is gained "
            "over the dense model; prune it first, or pass force=True"
        )
    _log.info("the encoder's density is %.4f", density)
