"""Checkpoints that reload on any world size and ZeRO stage, and hold no pickle.

Each rank writes the fragments that it owns: fp32 masters, optimizer moments and whatever else is
kept by fragment, as one safetensors file whose keys are `kind|parameter|start|length`. Rank 0 then
writes `manifest.json` (step, sizes, checksums, parameters, and the caller's state) and renames the
folder: the rename is the commit. A crash at any instant leaves either no new checkpoint or a whole
one.

    1. write   .step-00000050.ATTEMPT/rank-00003.safetensors, then rank-00003.done (bytes, sha256)
    2. rank 0  waits for all done-files, without a collective, then writes the manifest
    3. rank 0  renames to step-00000050

Loading is the inverse on ranges: whoever needs [start, start + length) of a parameter gets it
pieced together from the fragments that overlap it.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from distributed.config import Config
from distributed.errors import BadInput
from distributed.partition import Fragment, Partition, ReadRange

FORMAT, VERSION = "sparsebert-checkpoint", 1
MANIFEST = "manifest.json"
MASTER, MASK = "master", "keep_mask"
_COMMIT_SECONDS = 600.0
_STEP_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_FILE_NAME = re.compile(r"rank-[0-9]{5,9}\.safetensors")
_KEY = re.compile(r"([^|]+)\|(.+)\|([0-9]{1,18})\|([0-9]{1,18})", re.DOTALL)


class CheckpointConfig(Config):
    """When to save and what to keep."""

    interval_steps: int = Field(1000, ge=1)
    keep_last: int = Field(3, ge=1, description="older ones are removed after a save")


class BadCheckpoint(BadInput):
    """A checkpoint that cannot be used; the message names the file and the reason."""


class _FileRecord(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """The types that a manifest must have; `state` is its writer's."""

    step: int = Field(ge=0)
    world_size: int = Field(ge=1)
    optimizer_steps: int = Field(ge=0)
    parameters: dict[str, int]
    files: dict[str, _FileRecord]
    state: dict[str, Any]


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies in a run's checkpoint folder."""
    return folder / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    attempt: str,
    partition: Partition,
    packed_masks: Mapping[Fragment, torch.Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write this rank's part and wait for the commit: every rank calls it, without a collective.

    Args:
        folder: the run's checkpoint folder, shared by all ranks.
        step: number of finished steps.
        attempt: the same word on all ranks, new at each start: a stale writer cannot meet a new
            one.
        partition: what this rank owns.
        packed_masks: keep-masks of owned fragments, packed to bits.
        state: whatever else a resume needs; JSON.

    Raises:
        TimeoutError: another rank's part or the commit did not appear in time.
    """
    final = step_folder(folder, step)
    partial = folder / f".{final.name}.{attempt}"
    partial.mkdir(parents=True, exist_ok=True)
    name = f"rank-{partition.rank:05d}"
    file = partial / f"{name}.safetensors"
    save_file(_owned_tensors(partition, packed_masks), file)
    _fsync(file)
    done = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    write_json(partial / f"{name}.done", done)
    if partition.rank == 0:
        files = _await_done(partial, partition.world_size)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "world_size": partition.world_size,
            "optimizer_steps": partition.optimizer_steps(),
            "parameters": partition.numels,
            "files": files,
            "state": dict(state),
        }
        for done_file in partial.glob("*.done"):
            done_file.unlink()
        write_json(partial / MANIFEST, manifest)
        if final.exists():  # written by an earlier attempt: ours has the same content and is newer
            _remove(final)
        os.replace(partial, final)
        _fsync(folder)
    else:
        _await(lambda: final.exists() and not partial.exists(), f"rank 0's commit of {final}")
    return final


def remove_old(folder: Path, *, newest: int, keep_last: int) -> None:
    """Remove all but the last `keep_last` up to `newest`, and dead writers' parts. Rank 0 only.

    Later ones are damaged, for the run started before them: they take no place from a good one and
    are replaced when the run comes to their step.
    """
    steps = [step for step in list_steps(folder) if step <= newest]
    for step in steps[:-keep_last]:
        _remove(step_folder(folder, step))
    for stale in folder.glob(".step-*"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)


def list_steps(folder: Path) -> list[int]:
    """Steps that have a committed checkpoint, ascending; their content is not looked at."""
    names = (path.parent.name for path in folder.glob(f"step-*/{MANIFEST}"))
    return sorted(int(match[1]) for name in names if (match := _STEP_NAME.fullmatch(name)))


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
        self.manifest = _read_manifest(path)
        self.step: int = self.manifest["step"]
        self.state: dict[str, Any] = self.manifest["state"]
        self.numels: dict[str, int] = self.manifest["parameters"]
        self.optimizer_steps: int = self.manifest["optimizer_steps"]
        self._index: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        for name, entry in self.manifest["files"].items():
            self._index_file(path / name, entry, verify)
        self._check_tiling()

    @property
    def kinds(self) -> list[str]:
        """What is stored of the weights: master, the moments, keep_mask."""
        return sorted({kind for kind, _ in self._index})

    def reader(self, kind: str) -> ReadRange:
        """A function (name, start, length) -> tensor [length]; bool for masks, else fp32."""

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

    def _index_file(self, file: Path, entry: Mapping[str, Any], verify: bool) -> None:
        if not file.is_file():
            raise BadCheckpoint(f"{file} is missing")
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise BadCheckpoint(f"{file} has {size} bytes, its manifest says {entry['bytes']}")
            if verify and _sha256(file) != entry["sha256"]:
                raise BadCheckpoint(f"{file} is damaged: its SHA-256 is not the manifest's")
            with safe_open(file, framework="pt") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
                layouts = {key: (s.get_dtype(), s.get_shape()) for key, s in slices.items()}
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(f"{file} is not readable: {error}") from error
        for key, layout in layouts.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise BadCheckpoint(f"{file} has a tensor {key!r} that no checkpoint has")
            kind, name, start, length = match[1], match[2], int(match[3]), int(match[4])
            if layout != (("U8", [-(-length // 8)]) if kind == MASK else ("F32", [length])):
                raise BadCheckpoint(f"{file} has {layout[0]} {layout[1]} as {key!r}")
            self._index.setdefault((kind, name), []).append((start, length, file, key))

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


def _owned_tensors(
    partition: Partition, packed_masks: Mapping[Fragment, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Host copies of what this rank owns, by `kind|name|start|length`."""
    tensors = {}
    for f in partition.fragments:
        length = f.owned_stop - f.owned_start
        if length <= 0:
            continue
        where = f"{f.name}|{f.owned_start}|{length}"
        values = {MASTER: partition.master(f), **partition.moments(f)}
        for kind, value in values.items():
            tensors[f"{kind}|{where}"] = value[f.owned].cpu().clone()
        if f in packed_masks:
            tensors[f"{MASK}|{where}"] = packed_masks[f]
    return tensors


def _unpack(packed: torch.Tensor, length: int) -> torch.Tensor:
    """Bool [length] from bits, the first weight in the highest bit of the first byte."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).view(-1)[:length].bool()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{path} is not a checkpoint: it has no {MANIFEST}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file} is not readable: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadCheckpoint(f"{file} is not a sparsebert manifest")
    if manifest.get("version") != VERSION:
        raise BadCheckpoint(
            f"{file} has format version {manifest.get('version')}, this release reads {VERSION}"
        )
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BadCheckpoint(f"{file} is damaged at {where}: {problem['msg']}") from None
    for name in manifest["files"]:
        if not _FILE_NAME.fullmatch(name):
            raise BadCheckpoint(f"{file} names {name!r}, a file outside its folder or not a rank's")
    return manifest


def _await_done(partial: Path, world_size: int) -> dict[str, Any]:
    names = [f"rank-{rank:05d}" for rank in range(world_size)]
    _await(lambda: all((partial / f"{n}.done").exists() for n in names), f"all ranks in {partial}")
    return {f"{n}.safetensors": json.loads((partial / f"{n}.done").read_text()) for n in names}


def _await(ready: Any, what: str) -> None:
    deadline = time.monotonic() + _COMMIT_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited {_COMMIT_SECONDS:.0f} s for {what}: is the run folder shared by all nodes?"
            )
        time.sleep(0.01)


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or nothing."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with open(temporary, "w") as out:
        json.dump(value, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)


def _remove(path: Path) -> None:
    # First out of sight, so that a crash while removing leaves no half checkpoint under its name.
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
