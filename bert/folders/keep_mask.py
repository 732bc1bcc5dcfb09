"""keep_mask.safetensors, the file that says which weights of an export are alive.

Under the canonical name of each prunable weight (its name in AutoModel) a uint8 tensor of
ceil(numel / 8) bytes; weight i of the row-major tensor is bit i % 8, counted from the lowest, of
byte i // 8; 1 = kept; the last byte is filled up with 0. Metadata: `format` and `format_version` as
below, `digest` if there is one, and `shapes`, a JSON object from name to shape.

The file matters: a live weight may happen to be 0, so the zeros alone are no mask.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bert.architecture import is_prunable
from distributed.errors import BadInput

KEEP_MASK_FILE = "keep_mask.safetensors"
_FORMAT = {"format": "sparsebert_keep_mask", "format_version": "1"}


def check_keep_masks(
    state: Mapping[str, torch.Tensor], *, keep_masks: Mapping[str, torch.Tensor], source: str
) -> None:
    """Refuse masks that do not fit the weights of `state`, or that prune one that is not 0.

    Each prunable weight must have one; others, such as an embedding that `sparsebert prune --match`
    pruned, may. `source` is what the message blames: a file, or words.
    """
    missing = sorted({name for name in state if is_prunable(name)} - keep_masks.keys())
    odd = missing or sorted(keep_masks.keys() - state.keys())
    if odd:
        raise BadInput(
            f"{source} must name each prunable weight and nothing that is no weight: {odd[0]} is "
            f"{'missing' if missing else 'too many'}"
        )
    for name, keep_mask in keep_masks.items():
        weight = state[name]
        if keep_mask.shape != weight.shape or keep_mask.dtype != torch.bool:
            raise BadInput(f"{source} for {name} is not a bool tensor of {list(weight.shape)}")
        if ((weight != 0) & ~keep_mask).any():
            raise BadInput(f"{name} is not 0 everywhere where {source} prunes it")


def save_keep_masks(
    keep_masks: Mapping[str, torch.Tensor], *, digest: str | None, path: Path
) -> None:
    """Write bool masks (True = keep) in the layout above."""
    packed = {
        name: torch.from_numpy(np.packbits(keep_mask.numpy().reshape(-1), bitorder="little"))
        for name, keep_mask in keep_masks.items()
    }
    shapes = {name: list(keep_mask.shape) for name, keep_mask in keep_masks.items()}
    metadata = {**_FORMAT, "shapes": json.dumps(shapes)}
    if digest is not None:
        metadata["digest"] = digest
    save_file(packed, path, metadata=metadata)


def load_keep_masks(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """The masks of a file (bool, True = keep) and the digest that they were saved with."""
    packed = read_tensors(path)
    metadata = read_metadata(path)
    if not metadata.items() >= _FORMAT.items():
        raise BadInput(f"{path} is not a keep mask of format version 1: export the model again")
    try:
        shapes = {
            name: tuple(map(int, shape))
            for name, shape in json.loads(metadata.get("shapes", "{}")).items()
        }
    except (ValueError, TypeError, AttributeError):
        raise BadInput(f"{path} is damaged at its shapes: export the model again") from None
    keep_masks = {}
    for name, shape in shapes.items():
        numel = int(np.prod(shape))
        data = packed.get(name)
        if data is None or data.dtype != torch.uint8 or data.shape != ((numel + 7) // 8,):
            raise BadInput(f"{path} is damaged at {name}: export the model again")
        bits = np.unpackbits(data.numpy(), count=numel, bitorder="little")
        keep_masks[name] = torch.from_numpy(bits.astype(bool)).view(*shape)
    return keep_masks, metadata.get("digest")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is missing or damaged ({error}): copy it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty if there is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
