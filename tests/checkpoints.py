"""Writing a checkpoint at once, as runs do in the background."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distributed.checkpoint.reading import step_folder
from distributed.checkpoint.writing import HostCopy, write_snapshot
from distributed.fragment import Fragment
from distributed.partition import Partition


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
        attempt: the same token on all ranks, from `fencing.claim`, new at each start.
        partition: what this rank owns.
        packed_masks: keep-masks of owned fragments, packed to bits.
        state: whatever else a resume needs; JSON.
    """
    snapshot = HostCopy().take(partition, step=step, packed_masks=packed_masks, state=state)
    write_snapshot(folder, snapshot, attempt=attempt)
    final = step_folder(folder, step)
    if snapshot.rank:
        deadline = time.monotonic() + 60
        while not final.exists():
            assert time.monotonic() < deadline, f"rank 0 has not committed {final}"
            time.sleep(0.02)
    return final


def on_ranks(world_size: int, save: Callable[[int], object]) -> None:
    """Call `save` with each rank, in a thread of its own: rank 0 waits for the others."""
    threads = [threading.Thread(target=save, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
