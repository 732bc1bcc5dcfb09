"""Real checkpoints of known tensors, written by threads that stand for ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from distributed.fragment import Fragment
from tests.checkpoints import on_ranks, save_checkpoint

NUMELS = {"encoder.weight": 101, "encoder.bias": 7, "odd|name": 3}
STEP = 50
STATE = {"train": {"step": STEP}, "sparsity": {"digest": "00ff"}}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(numel, generator=generator) for name, numel in NUMELS.items()}


def masks(seed: int = 0) -> dict[str, torch.Tensor]:
    return {"encoder.weight": tensors(seed)["encoder.weight"] > 0}


def pretend_rank(
    rank: int, world_size: int, *, step: int = STEP, seed: int = 0
) -> tuple[Any, dict[Fragment, torch.Tensor]]:
    """A partition whose pieces begin and end anywhere, and its packed masks."""
    held: dict[Fragment, torch.Tensor] = {}
    for slot, (name, numel) in enumerate(NUMELS.items()):
        start, stop = (numel * r // world_size for r in (rank, rank + 1))
        values = tensors(seed)[name][start:stop]
        held[Fragment(name, start, stop - start, slot, 0, start, stop)] = values
    packed = {
        f: torch.from_numpy(np.packbits(masks(seed)[f.name][f.start : f.owned_stop].numpy()))
        for f in held
        if f.name in masks()
    }
    partition = SimpleNamespace(
        rank=rank,
        world_size=world_size,
        fragments=tuple(held),
        numels=NUMELS,
        master=held.__getitem__,
        moments=lambda f: {"exp_avg": held[f] * 0.5},
        optimizer_steps=lambda: step - 1,
    )
    return partition, packed


def write(folder: Path, *, step: int = STEP, world_size: int = 3, seed: int = 0) -> Path:
    """Through `save_checkpoint`, a thread a rank."""
    final = folder / f"step-{step:08d}"

    def save(rank: int) -> None:
        partition, packed = pretend_rank(rank, world_size, step=step, seed=seed)
        save_checkpoint(
            folder,
            step=step,
            attempt="test",
            partition=partition,
            packed_masks=packed,
            state=STATE,
        )

    on_ranks(world_size, save)
    assert final.is_dir()
    return final
