"""Checkpoints that reload on any world size and ZeRO stage, and hold no pickle.

Each rank writes the fragments that it owns: fp32 masters, optimizer moments and whatever else is
kept by fragment, as one safetensors file whose keys are `kind|parameter|start|length`. Beside them
lies `manifest.json` (manifest.py): step, sizes, checksums, parameters, and the caller's
state. How they are written is told in writing.py; here they are read.

Loading is the inverse on ranges: whoever needs [start, start + length) of a parameter gets it
pieced together from the fragments that overlap it. Only that imports torch: a checkpoint is found
and verified without it.
"""

import re
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from distributed.checkpoint.manifest import (
    MANIFEST,
    STEP_NAME,
    BadCheckpoint,
    FileRecord,
    insist,
    read_manifest,
)
from distributed.files import sha256_of

if TYPE_CHECKING:
    import torch

    from distributed.partition import ReadRange

MASTER, MASK = "master", "keep_mask"
_KEY = re.compile(r"([^|]+)\|(.+)\|([0-9]{1,18})\|([0-9]{1,18})", re.DOTALL)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies in a run's checkpoint folder."""
    return folder / f"step-{step:08d}"


def list_steps(folder: Path) -> list[int]:
    """Steps that have a committed checkpoint, ascending; their content is not looked at."""
    names = (path.parent.name for path in folder.glob(f"step-*/{MANIFEST}"))
    return sorted(int(match[1]) for name in names if (match := STEP_NAME.fullmatch(name)))


def find_newest(folder: Path) -> tuple["Checkpoint | None", list[str]]:
    """The newest checkpoint whose files are all as written, and why newer ones were passed over."""
    refused: list[str] = []
    for step in reversed(list_steps(folder)):
        try:
            return Checkpoint(step_folder(folder, step)), refused
        except BadCheckpoint as error:
            refused.append(str(error))
    return None, refused


class Checkpoint:
    """A checkpoint on disk, verified: reads ranges of parameters, whoever wrote them."""

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        """Open and index.

        Args:
            path: the checkpoint's folder.
            verify: also compare every file's SHA-256.

        Raises:
            BadCheckpoint: naming the file and what is wrong with it.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self.step = self.manifest.step
        self.state = self.manifest.state
        self.numels = self.manifest.parameters
        self.optimizer_steps = self.manifest.optimizer_steps
        self._index: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        for name, entry in self.manifest.files.items():
            self._index_file(path / name, entry, verify)
        self._check_tiling()

    def section(self, *keys: str) -> dict[str, Any]:
        """The part of `state` at these keys; empty where it is absent or null.

        Raises:
            BadCheckpoint: something else than a mapping is there.
        """
        inside: dict[str, Any] = self.state
        for key in keys:
            found = inside.get(key) or {}
            if not isinstance(found, dict):
                raise self.damaged_at(*keys)
            inside = found
        return inside

    def damaged_at(self, *keys: str) -> BadCheckpoint:
        """The error to raise for a part of `state` that cannot be what its writer meant."""
        return BadCheckpoint(f"{self.path / MANIFEST} is damaged at {'.'.join(('state', *keys))}")

    @property
    def kinds(self) -> list[str]:
        """What is stored of the weights: master, the moments, keep_mask."""
        return sorted({kind for kind, _ in self._index})

    def holds(self, kind: str, name: str) -> bool:
        """Whether `kind` is stored of this parameter."""
        return (kind, name) in self._index

    def reader(self, kind: str) -> "ReadRange":
        """A function (name, start, length) -> tensor [length]; bool for masks, else fp32."""
        import torch

        def read(name: str, start: int, length: int) -> torch.Tensor:
            out = torch.empty(length, dtype=torch.bool if kind == MASK else torch.float32)
            for at, size, file, key in self._index[kind, name]:
                first, last = max(at, start), min(at + size, start + length)
                if first >= last:
                    continue
                with safe_open(file, framework="pt") as opened:
                    if kind == MASK:
                        piece = _unpack(opened.get_tensor(key), size)[first - at : last - at]
                    else:
                        piece = opened.get_slice(key)[first - at : last - at]
                out[first - start : last - start] = piece
            return out

        return read

    def _index_file(self, file: Path, entry: FileRecord, verify: bool) -> None:
        layouts = insist(lambda: self._look_at(file, entry, verify), file)
        for key, layout in layouts.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise BadCheckpoint(f"{file} has a tensor {key!r} that no checkpoint has")
            kind, name, start, length = match[1], match[2], int(match[3]), int(match[4])
            if layout != (("U8", [-(-length // 8)]) if kind == MASK else ("F32", [length])):
                raise BadCheckpoint(f"{file} has {layout[0]} {layout[1]} as {key!r}")
            self._index.setdefault((kind, name), []).append((start, length, file, key))

    def _look_at(
        self, file: Path, entry: FileRecord, verify: bool
    ) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of each tensor of a file that is as its manifest says."""
        try:
            found = file.stat()
            if not S_ISREG(found.st_mode):
                raise FileNotFoundError
            if found.st_size != entry.bytes:
                raise BadCheckpoint(
                    f"{file} has {found.st_size} bytes, its manifest says {entry.bytes}"
                )
            if verify and sha256_of(file) != entry.sha256:
                raise BadCheckpoint(f"{file} is damaged: its SHA-256 is not the manifest's")
            with safe_open(file, framework="np") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
                return {key: (s.get_dtype(), s.get_shape()) for key, s in slices.items()}
        except FileNotFoundError as error:
            raise BadCheckpoint(f"{file} is missing") from error
        except SafetensorError as error:
            raise BadCheckpoint(f"{file} is not readable: {error}") from error

    def _check_tiling(self) -> None:
        for (kind, name), pieces in self._index.items():
            pieces.sort()
            end = 0
            for start, length, file, _ in pieces:
                if start != end:
                    raise BadCheckpoint(f"{file} does not continue {kind} of {name} at {end}")
                end = start + length
            if end != self.numels.get(name):
                raise BadCheckpoint(f"{self.path} holds {end} of {self.numels.get(name)} of {name}")
        for kind in {MASTER, *self.kinds} - {MASK}:
            for name in self.numels:
                if (kind, name) not in self._index:
                    raise BadCheckpoint(f"{self.path} does not hold {kind} of {name}")


def _unpack(packed: "torch.Tensor", length: int) -> "torch.Tensor":
    """Bool [length] from bits, the first weight in the highest bit of the first byte."""
    import torch

    shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).view(-1)[:length].bool()
