"""save_sparse and load_sparse: a folder with config.json, the tokenizer and sparse.safetensors.

There is no model.safetensors: AutoModel fails on such a folder instead of starting at random.
"""

import contextlib
import ctypes
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from sparsebert.inference.convert import check_encoder, find_bert, install
from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.layout import LAYER_NAMES, MATRIX_NAMES
from sparsebert.inference.library import load_kernel
from sparsebert.inference.module import SparseEncoder
from sparsebert.inference.packing import PackedReader, pack
from sparsebert.inference.quantize import FP32, INT8, Int8Embedding, Int8Matrix
from sparsebert.inference.sparse_file import (
    MODEL_CLASSES,
    SPARSE_FILE,
    SparseFile,
    write_sparse_file,
)

CONFIG_FILE = "config.json"
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


def save_sparse(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Write a model that `to_sparse` made as the folder `folder`, which must not exist yet.

    Args:
        model: one of transformers' BERT classes, its encoder sparse.
        folder: appears whole or not at all.
        tokenizer: saved beside it if given.
    """
    with appears_whole(Path(folder)) as partial:
        write_sparse(model, partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def write_sparse(model: nn.Module, folder: Path) -> None:
    """Write config.json and sparse.safetensors into a folder that exists."""
    if not isinstance(model, PreTrainedModel) or type(model).__name__ not in MODEL_CLASSES:
        raise BadInput(
            f"a {type(model).__name__} cannot be saved: give the transformers model in it (of a "
            "SentenceTransformer, use sparsebert.integrations.sentence_transformers)"
        )
    encoder = find_bert(model).encoder
    if not isinstance(encoder, SparseEncoder):
        raise BadInput("the model's encoder is dense: call to_sparse first")
    reader = PackedReader(encoder.packed)
    matrices = {
        f"encoder.layer.{layer}.{name}": found
        for layer in range(reader.dimensions.layers)
        for name, found in reader.matrices(layer).items()
    }
    weights = {name: found.weight for name, found in matrices.items()}
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_sparse_file(
        folder / SPARSE_FILE,
        _tensors(model, reader, weights).items(),
        {name: found.is_entry for name, found in matrices.items()},
        model_class=type(model).__name__,
        values=INT8 if reader.is_rounded else FP32,
    )


def _tensors(
    model: nn.Module, reader: PackedReader, matrices: Mapping[str, torch.Tensor | Int8Matrix]
) -> dict[str, torch.Tensor | Int8Matrix]:
    """Every tensor by its name in the class, each storage once: the class that loads ties again."""
    bert = find_bert(model)
    prefix = prefix_of(model, bert)
    found: dict[str, torch.Tensor | Int8Matrix] = {}
    seen: set[int] = set()
    for name, tensor in _plain_tensors(model):
        if tensor.numel() == 0 or tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor
    for layer in range(reader.dimensions.layers):
        for name, vector in reader.vectors(layer).items():
            found[f"{prefix}encoder.layer.{layer}.{name}"] = vector
    found |= {f"{prefix}{name}": matrix for name, matrix in matrices.items()}
    table = bert.embeddings.word_embeddings
    if isinstance(table, Int8Embedding):
        found[f"{prefix}{WORD_EMBEDDINGS}"] = Int8Matrix(table.values, table.scales)
    return found


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a state_dict has, but of the modules that are ours."""
    for name, part in model.named_modules():
        if not isinstance(part, SparseEncoder | Int8Embedding):
            own: dict[str, torch.Tensor] = {}
            part._save_to_state_dict(own, f"{name}." if name else "", False)
            yield from own.items()


def prefix_of(model: nn.Module, bert: nn.Module) -> str:
    """What stands before BertModel's names in the model's."""
    return next(f"{name}." if name else "" for name, part in model.named_modules() if part is bert)


@contextlib.contextmanager
def appears_whole(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its name if the block succeeds."""
    if output.exists():
        raise BadInput(f"{output} exists already: choose another folder")
    folder = output.parent / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
        mode = (folder / CONFIG_FILE).stat().st_mode & 0o777
        for file in folder.iterdir():  # safetensors makes files that only their owner may read
            file.chmod(mode)
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def load_sparse(
    folder: str | Path, *, dense: bool = False, fallback: bool = False
) -> PreTrainedModel:
    """Open a folder that `save_sparse` or `sparsebert export --format sparse` wrote.

    Args:
        folder: its path; nothing is downloaded.
        dense: give the plain transformers model, which can be trained; of int8 values with the
            weights that they stand for.
        fallback: give the plain model, with a warning, where the kernel cannot be had.

    Raises:
        BadInput: the folder is damaged, no such folder, or the kernel cannot be had.
    """
    folder = Path(folder)
    file = SparseFile(_find_file(folder))
    try:
        config = transformers.BertConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"{folder / CONFIG_FILE} is missing or damaged ({reason}): copy it again"
        ) from None
    if not dense:
        try:
            load_kernel()
        except KernelUnavailable as error:
            if not fallback:
                raise
            warnings.warn(f"the model stays dense: {error}", stacklevel=2)
            dense = True
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, file.model_class)(config)
    bert = find_bert(model)
    prefix = prefix_of(model, bert)
    rounded = {name: file.read_rounded(name) for name in file.plain_names()}
    table = rounded.get(f"{prefix}{WORD_EMBEDDINGS}")
    if not dense and isinstance(table, Int8Matrix):
        del rounded[f"{prefix}{WORD_EMBEDDINGS}"]
    else:
        table = None
    state = {name: _dequantized(tensor) for name, tensor in rounded.items()}
    if dense:
        state |= {name: _dequantized(file.matrix(name)[0]) for name in file.shapes}
    else:
        install(model, bert, _pack_from(file, state, bert, prefix), table)
    _fill(model, state, folder)
    del file, state, rounded
    _return_freed_memory()
    return model.eval()


def _dequantized(tensor: torch.Tensor | Int8Matrix) -> torch.Tensor:
    return tensor.dequantize() if isinstance(tensor, Int8Matrix) else tensor


def _return_freed_memory() -> None:
    """Glibc keeps what decoding freed, tens of megabytes, unless it is asked."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _find_file(folder: Path) -> Path:
    file = folder / SPARSE_FILE
    if not file.is_file():
        hint = (
            "it is a dense Hugging Face folder, open it with from_pretrained and call to_sparse"
            if (folder / "model.safetensors").is_file()
            else "give a folder that save_sparse wrote"
        )
        raise BadInput(f"{folder} has no {SPARSE_FILE}: {hint}")
    return file


def _pack_from(
    file: SparseFile, state: dict[str, torch.Tensor], bert: nn.Module, prefix: str
) -> torch.Tensor:
    """Pack the encoder matrix by matrix; its vectors are taken out of `state`."""
    dimensions = check_encoder(bert, check_tensors=False)
    vectors = {}
    masks: dict[str, torch.Tensor] = {}
    for layer in range(dimensions.layers):
        for name in LAYER_NAMES:
            full = f"{prefix}encoder.layer.{layer}.{name}"
            shape = dimensions.shape(name)
            if name in MATRIX_NAMES:
                found = file.shapes.get(full)
            else:
                vectors[full] = state.pop(full, torch.empty(0))
                found = tuple(vectors[full].shape)
            if found != shape:
                raise BadInput(
                    f"the sparse file does not fit config.json at {full}: copy both again"
                )

    def tensor(layer: int, name: str) -> torch.Tensor | Int8Matrix:
        full = f"{prefix}encoder.layer.{layer}.{name}"
        if name not in MATRIX_NAMES:
            return vectors[full]
        dense, masks[full] = file.matrix(full)
        return dense

    def keep_mask(layer: int, name: str) -> torch.Tensor:
        return masks.pop(f"{prefix}encoder.layer.{layer}.{name}")

    compute_int8 = load_kernel().has_int8
    return pack(dimensions, tensor, keep_mask=keep_mask, compute_int8=compute_int8)


def _fill(model: PreTrainedModel, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Put the tensors into a model without storage, tie what is tied, and leave nothing unset."""
    given = dict(state)
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    odd = sorted(given.keys() - own - set(model.all_tied_weights_keys))
    if odd:
        raise BadInput(f"{folder / SPARSE_FILE} has {odd[0]}, which config.json's model lacks")
    try:
        model.load_state_dict(given, strict=False, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BadInput(f"{folder / SPARSE_FILE} does not fit config.json: {reason}") from None
    model.tie_weights()
    embeddings = find_bert(model).embeddings
    positions = model.config.max_position_embeddings
    embeddings.position_ids = torch.arange(positions).expand((1, -1))
    embeddings.token_type_ids = torch.zeros((1, positions), dtype=torch.long)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise BadInput(f"{folder / SPARSE_FILE} lacks {name}: copy it again")
