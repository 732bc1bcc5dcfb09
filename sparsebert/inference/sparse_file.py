"""sparse.safetensors: the tensors of a BERT, its encoder's matrices in the room of their non-zeros.

A matrix of the encoder is two tensors there (docs/formats.md): NAME.mask, a bit a weight (lowest
bit first, 1 = stored), and NAME.values, the fp32 weights whose bit is set, row by row. Where
weights without a bit are -0.0 there is NAME.signs, a bit a weight as well. Every other tensor
stands under its own name.

In a file with int8 values NAME.values is int8, and NAME.scales (fp32) is what a row's values are
multiplied by. The word embeddings are int8 under their own name, with scales as well.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sparsebert.inference.errors import BadInput
from sparsebert.inference.layout import MATRIX_NAMES
from sparsebert.inference.quantize import FP32, INT8, Int8Matrix, quantize_rows

SPARSE_FILE = "sparse.safetensors"
_FORMAT = "sparsebert_sparse"
_VERSIONS = {FP32: "1", INT8: "2"}
_MATRIX = re.compile(
    r"(?:.*\.)?(encoder\.layer\.\d+\.(?:" + "|".join(map(re.escape, MATRIX_NAMES)) + "))"
)
MODEL_CLASSES = (
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


def is_word_embeddings(name: str) -> bool:
    """Whether a tensor is the word embeddings, by its name in any BERT class."""
    return name.endswith("embeddings.word_embeddings.weight")


# Classes whose output layer is the word embeddings once more; those stay fp32.
TIED_CLASSES = ("BertForMaskedLM", "BertForPreTraining")


def write_sparse_file(
    file: Path,
    tensors: Iterable[tuple[str, torch.Tensor | Int8Matrix]],
    is_entry: Mapping[str, torch.Tensor],
    *,
    model_class: str,
    mask_digest: str | None = None,
    values: str = FP32,
) -> None:
    """Write the tensors of a model of `model_class`.

    Args:
        file: to create.
        tensors: under their names in the class; rounded ones as they are.
        is_entry: bool by canonical name: which weights of a matrix are stored. A matrix without
            one has stored what is not zero.
        model_class: of transformers.
        mask_digest: of the masks, where training knew one.
        values: int8 rounds the matrices that are not rounded yet, and the word embeddings.
    """
    stored: dict[str, torch.Tensor] = {}
    shapes = {}
    for name, tensor in tensors:
        matrix = canonical_matrix(name)
        if not isinstance(tensor, Int8Matrix):
            tensor = tensor.detach().contiguous()
            if matrix is not None and tensor.dtype != torch.float32:
                raise BadInput(f"{name} is {tensor.dtype}, but only float32 can be stored exactly")
            is_table = is_word_embeddings(name) and model_class not in TIED_CLASSES
            if values == INT8 and (matrix is not None or is_table):
                tensor = quantize_rows(tensor.float())
        if isinstance(tensor, Int8Matrix):
            stored[f"{name}.scales"] = tensor.scales
            tensor = tensor.values
        if matrix is None:
            stored[name] = tensor
            continue
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
        "format": _FORMAT,
        "format_version": _VERSIONS[values],
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


class SparseFile:
    """sparse.safetensors, opened; each tensor is checked against its SHA-256 when it is read."""

    def __init__(self, file: Path) -> None:
        self._path = file
        try:
            self._file = cast(Any, safe_open(file, framework="pt"))  # which has no types
            metadata = self._file.metadata() or {}
            self._names = set(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{file} is missing or damaged ({error}): copy it again") from None
        version = metadata.get("format_version")
        if metadata.get("format") != _FORMAT or version not in _VERSIONS.values():
            raise BadInput(
                f"{file} is no sparse model of format version 1 or 2: export it again, or install "
                "a newer sparsebert"
            )
        self.values = INT8 if version == _VERSIONS[INT8] else FP32
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
        if self.model_class not in MODEL_CLASSES:
            raise BadInput(
                f"{file} holds a {self.model_class}, which is no BERT class: export it again"
            )

    def plain_names(self) -> list[str]:
        """Names of the tensors that are stored whole."""
        kinds = ("mask", "values", "signs", "scales")
        parts = {f"{name}.{part}" for name in self.shapes for part in kinds}
        return sorted(n for n in self._names - parts if not n.endswith(".scales"))

    def read_rounded(self, name: str) -> torch.Tensor | Int8Matrix:
        """One tensor that is stored whole: as it is, or rounded."""
        tensor = self.read(name)
        if tensor.dtype != torch.int8:
            return tensor
        scales = self._scales(name, len(tensor))
        if tensor.dim() != 2:
            raise BadInput(f"{self._path} is damaged at {name}: copy it again")
        return Int8Matrix(tensor, scales)

    def _scales(self, name: str, rows: int) -> torch.Tensor:
        scales = self.read(f"{name}.scales")
        if scales.dtype != torch.float32 or scales.shape != (rows,):
            raise BadInput(f"{self._path} is damaged at {name}.scales: copy it again")
        return scales

    def read(self, name: str) -> torch.Tensor:
        """One stored tensor, as memory of its own."""
        if name not in self._names:
            raise BadInput(f"{self._path} lacks {name}: copy it again")
        tensor = cast(torch.Tensor, self._file.get_tensor(name)).clone()
        if _hash(tensor) != self._hashes[name]:
            raise BadInput(f"{self._path} is damaged at {name}: copy it again")
        return tensor

    def matrix(self, name: str) -> tuple[torch.Tensor | Int8Matrix, torch.Tensor]:
        """A matrix, dense, and which of its weights are stored."""
        shape = self.shapes[name]
        is_entry = self._bits(f"{name}.mask", shape)
        values = self.read(f"{name}.values")
        dtype = torch.int8 if self.values == INT8 else torch.float32
        if values.dtype != dtype or values.shape != (int(is_entry.sum()),):
            raise BadInput(f"{self._path} is damaged at {name}.values: copy it again")
        dense = torch.zeros(shape, dtype=dtype)
        if f"{name}.signs" in self._names:
            dense[self._bits(f"{name}.signs", shape)] = -0.0
        dense[is_entry] = values
        if self.values == INT8:
            return Int8Matrix(dense, self._scales(name, shape[0])), is_entry
        return dense, is_entry

    def _bits(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        packed, numel = self.read(name), int(np.prod(shape))
        if packed.dtype != torch.uint8 or packed.shape != (-(-numel // 8),):
            raise BadInput(f"{self._path} is damaged at {name}: copy it again")
        bits = np.unpackbits(packed.numpy(), count=numel, bitorder="little")
        return torch.from_numpy(bits.astype(bool)).view(shape)
