"""Writing a checkpoint: each rank its own file, then one rename that makes all of it visible.

    1. copy     what this rank owns, from the live weights to host memory: training waits for this
    2. write    .step-00000050.ATTEMPT/rank-00003.safetensors, hashed on the way to the disk, then
                rank-00003.done with its size and checksum
    3. rank 0   waits for all done-files, without a collective, writes the manifest and renames the
                folder to step-00000050

The rename is the commit: a crash at any instant leaves either no new checkpoint or a whole one, and
the one before untouched. fencing.py keeps writers of an earlier start out.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed.checkpoint.fencing import commit, part_folder
from distributed.checkpoint.manifest import write_manifest
from distributed.checkpoint.reading import MASK, MASTER, step_folder
from distributed.files import remove_folder, write_json
from distributed.fragment import Fragment
from distributed.partition import Partition

_COMMIT_SECONDS = 600.0
_POLL_SECONDS = 0.02
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


class Abandoned(RuntimeError):
    """The write was given up because another rank's part failed."""


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint, in host memory, independent of what training does next."""

    step: int
    rank: int
    world_size: int
    tensors: Mapping[str, torch.Tensor]  # by `kind|parameter|start|length`
    manifest: Mapping[str, Any]  # without files; rank 0's is written


class HostCopy:
    """Copies what a rank owns to host memory, into the same buffers each time."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._from_gpu = False

    def take(
        self,
        partition: Partition,
        *,
        step: int,
        packed_masks: Mapping[Fragment, torch.Tensor],
        state: Mapping[str, Any],
    ) -> Snapshot:
        """A snapshot, valid until the next call.

        Args:
            partition: what this rank owns.
            step: number of finished steps.
            packed_masks: keep-masks of owned fragments, packed to bits.
            state: whatever else a resume needs; JSON.
        """
        tensors = {}
        for f in partition.fragments:
            length = f.owned_stop - f.owned_start
            if length <= 0:
                continue
            where = f"{f.name}|{f.owned_start}|{length}"
            for kind, value in {MASTER: partition.master(f), **partition.moments(f)}.items():
                key = f"{kind}|{where}"
                tensors[key] = self._copy(key, value.detach()[f.owned])
            if f in packed_masks:
                tensors[f"{MASK}|{where}"] = packed_masks[f]
        if self._from_gpu:
            torch.cuda.synchronize()
        manifest = {
            "step": step,
            "world_size": partition.world_size,
            "optimizer_steps": partition.optimizer_steps(),
            "parameters": partition.numels,
            "state": dict(state),
        }
        return Snapshot(step, partition.rank, partition.world_size, tensors, manifest)

    def _copy(self, key: str, value: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None:
            # Kept: the pages of fresh memory would cost more than the copy.
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[key] = buffer
            self._from_gpu |= value.is_cuda
        buffer.copy_(value, non_blocking=True)
        return buffer


def write_snapshot(
    folder: Path,
    snapshot: Snapshot,
    *,
    attempt: str,
    abandoned: Callable[[], bool] = lambda: False,
) -> None:
    """Write this rank's part; rank 0 also waits for all others' and commits.

    Args:
        folder: the run's checkpoint folder.
        snapshot: what to write.
        attempt: the same token on all ranks, from `fencing.claim`, new at each start.
        abandoned: asked while rank 0 waits.

    Raises:
        OSError: the part or the manifest cannot be written; nothing became visible.
        Abandoned: because of `abandoned`.
        TimeoutError: another rank's part did not appear in time.
        Superseded: a later start of the run has taken over.
    """
    final = step_folder(folder, snapshot.step)
    part = part_folder(folder, final.name, attempt)
    part.mkdir(parents=True, exist_ok=True)
    name = rank_name(snapshot.rank)
    file = part / f"{name}.safetensors"
    try:
        record = write_tensors(file, snapshot.tensors)
    except OSError:
        with contextlib.suppress(OSError):  # on a full disk: room to say so
            file.unlink()
        raise
    write_json(part / f"{name}.done", record)
    if snapshot.rank:
        return
    names = [rank_name(rank) for rank in range(snapshot.world_size)]
    _await(
        lambda: all((part / f"{n}.done").exists() for n in names),
        f"all ranks' parts in {part}",
        abandoned,
    )
    files = {f"{n}.safetensors": json.loads((part / f"{n}.done").read_bytes()) for n in names}
    for n in names:
        (part / f"{n}.done").unlink()
    write_manifest(part, {**snapshot.manifest, "files": files})
    commit(folder, final.name, attempt)


def remove_part(folder: Path, step: int, attempt: str) -> None:
    """Remove what a failed write has left."""
    remove_folder(part_folder(folder, step_folder(folder, step).name, attempt))


def rank_name(rank: int) -> str:
    """What a rank's files are called."""
    return f"rank-{rank:05d}"


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write contiguous host tensors (fp32 or uint8) as safetensors; its size and SHA-256.

    The checksum is of the bytes that were meant, taken on the way to the disk: it costs no second
    read, and finds what the disk made of them. Writing and hashing both let other threads run.
    """
    # As the format's own writer does: by falling alignment, so that each tensor is aligned.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    header: dict[str, Any] = {}
    at = 0
    for key in order:
        tensor = tensors[key]
        size = tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with open(file, "wb", buffering=0) as out:
        pieces = [memoryview(len(encoded).to_bytes(8, "little") + encoded)]
        pieces += [tensors[key].numpy().data.cast("B") for key in order]
        for piece in pieces:
            digest.update(piece)
            write_all(out.fileno(), piece)
        os.fsync(out.fileno())
    return {"bytes": 8 + len(encoded) + at, "sha256": digest.hexdigest()}


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of `data`: one call writes at most 2 GiB, and less on a disk that fills up."""
    while data:
        data = data[os.write(descriptor, data) :]


def _await(
    ready: Callable[[], bool], what: str, abandoned: Callable[[], bool] = lambda: False
) -> None:
    deadline = time.monotonic() + _COMMIT_SECONDS
    while not ready():
        if abandoned():
            raise Abandoned(f"gave up waiting for {what}")
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited {_COMMIT_SECONDS:.0f} s for {what}: is the run folder shared by all nodes?"
            )
        time.sleep(_POLL_SECONDS)
