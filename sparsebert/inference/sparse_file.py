"""save_sparse and load_sparse: a BERT folder whose weights take the room of its non-zeros.

The folder has config.json, the tokenizer's files and sparse.safetensors (docs/formats.md). A matrix
of the encoder is two tensors there: NAME.mask, a bit a weight (lowest bit first, 1 = stored), and
NAME.values, the fp32 weights whose bit is set, row by row; where weights without a bit are -0.0
there is NAME.signs, a bit a weight as well. Every other tensor stands under its own name. There is
no model.safetensors: AutoModel fails on such a folder instead of starting at random.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from sparsebert.inference.convert import check_encoder, find_bert, install
from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.layout import LAYER_NAMES, MATRIX_NAMES
from sparsebert.inference.library import load_kernel
from sparsebert.inference.module import SparseEncoder
from sparsebert.inference.packing import PackedReader, pack

SPARSE_FILE = "sparse.safetensors"
CONFIG_FILE = "config.json"
_FORMAT = {"format": "sparsebert_sparse", "format_version": "1"}
_MATRIX = re.compile(
    r"(?:.*\.)?(encoder\.layer\.\d+\.(?:" + "|".join(map(re.escape, MATRIX_NAMES)) + "))"
)
_CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
)


def canonical_matrix(name: str) -> str | None:
    """An encoder matrix's name in BertModel, from its name in any BERT class; None for the rest."""
    match = _MATRIX.fullmatch(name)
    return match[1] if match else None


# Writing


def save_sparse(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Write a model that `to_sparse` made as the folder `folder`, which must not exist yet.

    Args:
        model: one of transformers' BERT classes, its encoder sparse.
        folder: appears whole or not at all.
        tokenizer: saved beside it if given.
    """
    if not isinstance(model, PreTrainedModel) or type(model).__name__ not in _CLASSES:
        raise BadInput(
            f"a {type(model).__name__} cannot be saved: give the transformers model in it (of a "
            "SentenceTransformer, model[0].model)"
        )
    encoder = find_bert(model).encoder
    if not isinstance(encoder, SparseEncoder):
        raise BadInput("the model's encoder is dense: call to_sparse first")
    reader = PackedReader(encoder.packed)
    is_entry = {
        f"encoder.layer.{layer}.{name}": found.is_entry
        for layer in range(reader.dimensions.layers)
        for name, found in reader.matrices(layer).items()
    }
    with appears_whole(Path(folder)) as partial:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        tensors = _without_duplicates(model.state_dict())
        write_sparse_file(
            partial / SPARSE_FILE, tensors.items(), is_entry, model_class=type(model).__name__
        )


def _without_duplicates(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each storage once: tied weights are tied again by the class that loads them."""
    seen: dict[int, str] = {}
    return {
        name: tensor
        for name, tensor in state.items()
        if seen.setdefault(tensor.data_ptr(), name) == name or tensor.numel() == 0
    }


def write_sparse_file(
    file: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    is_entry: Mapping[str, torch.Tensor],
    *,
    model_class: str,
    mask_digest: str | None = None,
) -> None:
    """Write the tensors of a model of `model_class`.

    Args:
        file: to create.
        tensors: under their names in the class.
        is_entry: bool by canonical name: which weights of a matrix are stored. A matrix without
            one has stored what is not zero.
        model_class: of transformers.
        mask_digest: of the masks, where training knew one.
    """
    stored: dict[str, torch.Tensor] = {}
    shapes = {}
    for name, tensor in tensors:
        tensor = tensor.detach().contiguous()
        matrix = canonical_matrix(name)
        if matrix is None:
            stored[name] = tensor
            continue
        if tensor.dtype != torch.float32:
            raise BadInput(f"{name} is {tensor.dtype}, but only float32 can be stored exactly")
        chosen = is_entry.get(matrix)
        chosen = tensor != 0 if chosen is None else chosen
        if (tensor[~chosen] != 0).any():
            raise BadInput(f"{name} is not 0 everywhere where its mask prunes it")
        shapes[name] = list(tensor.shape)
        stored[f"{name}.mask"] = _pack_bits(chosen)
        stored[f"{name}.values"] = tensor[chosen]
        negative = ~chosen & tensor.signbit()
        if negative.any():
            stored[f"{name}.signs"] = _pack_bits(negative)
    hashes = {name: _hash(tensor) for name, tensor in stored.items()}
    metadata = {
        **_FORMAT,
        "model_class": model_class,
        "shapes": json.dumps(shapes),
        "sha256": json.dumps(hashes),
        "digest": _digest(hashes),
        **({"mask_digest": mask_digest} if mask_digest else {}),
    }
    save_file(stored, file, metadata=metadata)


def _pack_bits(bits: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(bits.numpy().reshape(-1), bitorder="little"))


def _hash(tensor: torch.Tensor) -> str:
    data = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_zeros(0)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _digest(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


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


# Reading


class SparseFile:
    """sparse.safetensors, opened; each tensor is checked against its SHA-256 when it is read."""

    def __init__(self, file: Path) -> None:
        self._path = file
        try:
            opened: Any = safe_open(file, framework="pt")
            self._file = opened
            metadata: dict[str, str] = opened.metadata() or {}
            self._names = set(opened.keys())
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{file} is missing or damaged ({error}): copy it again") from None
        if not metadata.items() >= _FORMAT.items():
            raise BadInput(f"{file} is no sparse model of format version 1: export it again")
        try:
            self._hashes: dict[str, str] = json.loads(metadata["sha256"])
            shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
            self.shapes = {name: tuple(int(n) for n in shape) for name, shape in shapes.items()}
            self.model_class = metadata["model_class"]
            is_whole = (
                metadata["digest"] == _digest(self._hashes) and self._hashes.keys() == self._names
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            raise BadInput(f"{file} is damaged in its header: copy it again")
        if self.model_class not in _CLASSES:
            raise BadInput(
                f"{file} holds a {self.model_class}, which is no BERT class: export it again"
            )

    def plain_names(self) -> list[str]:
        """Names of the tensors that are stored as they are."""
        parts = {f"{name}.{part}" for name in self.shapes for part in ("mask", "values", "signs")}
        return sorted(self._names - parts)

    def read(self, name: str) -> torch.Tensor:
        """One stored tensor, as memory of its own."""
        if name not in self._names:
            raise BadInput(f"{self._path} lacks {name}: copy it again")
        tensor = cast(torch.Tensor, self._file.get_tensor(name)).clone()
        if _hash(tensor) != self._hashes[name]:
            raise BadInput(f"{self._path} is damaged at {name}: copy it again")
        return tensor

    def matrix(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A matrix, dense, and which of its weights are stored."""
        shape = self.shapes[name]
        is_entry = self._bits(f"{name}.mask", shape)
        values = self.read(f"{name}.values")
        if values.dtype != torch.float32 or values.shape != (int(is_entry.sum()),):
            raise BadInput(f"{self._path} is damaged at {name}.values: copy it again")
        dense = torch.zeros(shape)
        if f"{name}.signs" in self._names:
            dense[self._bits(f"{name}.signs", shape)] = -0.0
        dense[is_entry] = values
        return dense, is_entry

    def _bits(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        packed, numel = self.read(name), int(np.prod(shape))
        if packed.dtype != torch.uint8 or packed.shape != (-(-numel // 8),):
            raise BadInput(f"{self._path} is damaged at {name}: copy it again")
        bits = np.unpackbits(packed.numpy(), count=numel, bitorder="little")
        return torch.from_numpy(bits.astype(bool)).view(shape)


def load_sparse(
    folder: str | Path, *, dense: bool = False, fallback: bool = False
) -> PreTrainedModel:
    """Open a folder that `save_sparse` or `sparsebert export --format sparse` wrote.

    Args:
        folder: its path; nothing is downloaded.
        dense: give the plain transformers model, which can be trained.
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
    prefix = next(f"{n}." if n else "" for n, part in model.named_modules() if part is bert)
    state = {name: file.read(name) for name in file.plain_names()}
    if dense:
        state |= {name: file.matrix(name)[0] for name in file.shapes}
    else:
        install(model, bert, _pack_from(file, state, bert, prefix))
    _fill(model, state, folder)
    del file, state
    _return_freed_memory()
    return model.eval()


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

    def tensor(layer: int, name: str) -> torch.Tensor:
        full = f"{prefix}encoder.layer.{layer}.{name}"
        if name not in MATRIX_NAMES:
            return vectors[full]
        dense, masks[full] = file.matrix(full)
        return dense

    def keep_mask(layer: int, name: str) -> torch.Tensor:
        return masks.pop(f"{prefix}encoder.layer.{layer}.{name}")

    return pack(dimensions, tensor, keep_mask=keep_mask)


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
