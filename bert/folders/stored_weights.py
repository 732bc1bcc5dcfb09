"""The weights of a Hugging Face folder as they are stored: files, names, types and shapes.

Opening a folder reads the headers of its safetensors files; tensors are read when they are asked
for. Nothing here knows BERT.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distributed.errors import BadInput

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
_LFS_POINTER = b"version https://git-lfs"
# Weights in a form that is not read, and what to do about it.
_CONVERT = f"convert it to {WEIGHTS_FILE} with transformers' save_pretrained"
_OTHER_FORMS = {
    ".bin": f"a pickle (.bin), which is never opened: {_CONVERT}",
    ".pt": f"a pickle (.pt), which is never opened: {_CONVERT}",
    ".pth": f"a pickle (.pth), which is never opened: {_CONVERT}",
    ".h5": f"TensorFlow's form (.h5): {_CONVERT}",
    ".ckpt": f"TensorFlow's form (.ckpt): {_CONVERT}",
    ".index": f"TensorFlow's form (.ckpt.index): {_CONVERT}",
    ".pb": f"TensorFlow's form (SavedModel): {_CONVERT}",
    ".msgpack": f"Flax's form (.msgpack): {_CONVERT}",
    ".onnx": "ONNX, which cannot be trained: give the model that it was exported from",
    ".gguf": "GGUF, which is quantised: give the model that it was made from",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, described by the file's header."""

    file: Path
    name: str
    dtype: str  # as safetensors spells it: F32, BF16, I8, ...
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether its numbers are weights as they are, not codes to be scaled."""
        return self.dtype in FLOATS

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def read(self) -> torch.Tensor:
        """The tensor, in the type it is stored in."""
        try:
            with safe_open(self.file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(self.name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise damaged(self.file, error) from None

    def read_rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of its first dimension, in fp32."""
        with safe_open(self.file, framework="pt") as opened:
            rows: torch.Tensor = opened.get_slice(self.name)[first:last].float()
        return rows


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a Hugging Face folder."""

    folder: Path
    files: tuple[Path, ...]
    index: Path | None  # of a model in several files

    @cached_property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """Every tensor, by file and name.

        Raises:
            BadInput: a file is damaged, or lacks a tensor that the index places in it.
        """
        found = tuple(tensor for file in self.files for tensor in _read_header(file))
        if self.index is not None:
            there = {(tensor.file.name, tensor.name) for tensor in found}
            for name, file in sorted(_read_index(self.index).items()):
                if (file, name) not in there:
                    raise BadInput(
                        f"{self.index} says that {name} is in {file}, and it is not: copy the "
                        "folder again"
                    )
        return found


def open_weights(folder: Path) -> StoredWeights:
    """The safetensors files of a folder, one or several with an index.

    Raises:
        BadInput: it has none, or their index cannot be used.
    """
    index = find_index(folder)
    if index is not None:
        files = tuple(folder / name for name in sorted(set(_read_index(index).values())))
        for file in files:
            if not file.is_file():
                raise BadInput(f"{index} names {file.name}, which is missing: copy it again")
        return StoredWeights(folder, files, index)
    if not (folder / WEIGHTS_FILE).is_file():
        raise BadInput(_say_what_is_missing(folder))
    return StoredWeights(folder, (folder / WEIGHTS_FILE,), None)


def find_index(folder: Path) -> Path | None:
    """The index of a model in several files; transformers reads the one file where both are."""
    index = folder / INDEX_FILE
    return index if index.is_file() and not (folder / WEIGHTS_FILE).is_file() else None


def damaged(file: Path, error: Exception) -> BadInput:
    """The error to raise for a safetensors file that cannot be read."""
    try:
        with open(file, "rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return BadInput(
                    f"{file} is a Git LFS pointer and not the weights: run git lfs pull in "
                    f"{file.parent}"
                )
    except OSError:
        pass
    return BadInput(f"{file} is missing or damaged ({error}): copy it again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BadInput: it is not JSON, or not an object.
        FileNotFoundError: there is no such file.
    """
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError):
        raise BadInput(f"{file} is not JSON: copy it again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{file} is not a JSON object: copy it again")
    return value


def _read_index(index: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise BadInput(f"{index} has no weight_map, which says where each tensor is: copy it again")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{index} names a file outside its folder: {name}")
    return places


def _read_header(file: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                tensor = opened.get_slice(name)
                yield StoredTensor(file, name, tensor.get_dtype(), tuple(tensor.get_shape()))
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from None


def describe_other_folder(folder: Path) -> str | None:
    """What a folder is that is taken for a model's, and what to give; None if it is unknown."""
    if folder.is_file():
        return f"{folder} is a file: give the folder that it lies in"
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} is a PEFT adapter and not a model: merge it into its model with PEFT's "
            "merge_and_unload, and give the folder that save_pretrained then writes"
        )
    for config in sorted(folder.glob("*_Transformer/config.json")):
        return f"{folder} is a sentence-transformers folder: give {config.parent}, its transformer"
    for config in sorted(folder.glob("snapshots/*/config.json")):
        return f"{folder} is a folder of the Hugging Face cache: give {config.parent}"
    for config in sorted(folder.glob("checkpoint-*/config.json")):
        return f"{folder} is a folder of a Trainer's checkpoints: give one, such as {config.parent}"
    if any(folder.glob("*.ckpt.index")) or (folder / "bert_config.json").is_file():
        return (
            f"{folder} is a TensorFlow checkpoint of BERT: convert it with transformers and give "
            "the folder that save_pretrained writes"
        )
    return None


def _say_what_is_missing(folder: Path) -> str:
    if other := describe_other_folder(folder):
        return other
    if not folder.is_dir():
        return f"{folder} is not a folder: give a Hugging Face folder with safetensors"
    variants = sorted(set(folder.glob("*.safetensors")) - {folder / "keep_mask.safetensors"})
    if variants:
        return (
            f"{folder} has no {WEIGHTS_FILE}, but {variants[0].name}: if that is the whole model, "
            f"copy it to {WEIGHTS_FILE}"
        )
    for suffix, form in _OTHER_FORMS.items():
        if any(folder.glob(f"*{suffix}")):
            return f"{folder} has its weights in {form}"
    return f"{folder} has no {WEIGHTS_FILE}: give a Hugging Face folder with safetensors"
