"""Checkpoints beside training: it waits for a copy to host memory, and the disk works meanwhile.

    save      wait for the last write to be over, copy, start the next in a thread
    settle    agree on how the write in flight ended: whole on all ranks, or failed on any
    finish    the same for the last one, which is tried again if it failed

One write is in flight at most. A failed one is told at once and costs its checkpoint, no more: the
ones before stay, and training goes on, unless failures repeat.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distributed.checkpoint.fencing import Superseded
from distributed.checkpoint.writing import (
    Abandoned,
    HostCopy,
    Snapshot,
    remove_part,
    write_snapshot,
)
from distributed.errors import BadInput
from distributed.fragment import Fragment
from distributed.partition import Partition
from distributed.world import all_reduce_max

log = logging.getLogger(__name__)

# How often ranks tell each other how far they are, while training waits for a write.
_ROUND_SECONDS = 0.2
_LAST_SECONDS = 10.0
_RETRY_SECONDS = 2.0


class CheckpointNotWritten(BadInput):
    """Checkpoints cannot be written: most often a full or read-only disk, which a user can mend."""


class CheckpointWriter:
    """Writes this rank's checkpoints in a thread."""

    def __init__(
        self,
        folder: Path,
        *,
        attempt: str,
        max_failures: int,
        on_commit: Callable[[int], None],
        on_failure: Callable[[int, str], None],
    ) -> None:
        """Write nothing yet.

        Args:
            folder: the run's checkpoint folder.
            attempt: the token of this start (fencing.py), the same on all ranks.
            max_failures: failed writes in a row that end training.
            on_commit: called on rank 0, in the thread, with the step that has become visible.
            on_failure: called in the thread, at once, on the rank whose write failed: step, reason.
        """
        self._folder = folder
        self._attempt = attempt
        self._max_failures = max_failures
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._snapshot: Snapshot | None = None
        self._error: Exception | None = None
        self._abandoned = threading.Event()
        self._failures = 0  # in a row, agreed
        self._stall_seconds = 0.0
        self._write_seconds: float | None = None

    def save(
        self,
        partition: Partition,
        *,
        step: int,
        packed_masks: Mapping[Fragment, torch.Tensor],
        state: Mapping[str, Any],
        began: float | None = None,
    ) -> None:
        """Collective: take a copy and begin to write it.

        Args:
            partition: whose weights and moments to copy.
            step: of the checkpoint.
            packed_masks: to be saved beside them.
            state: JSON for the manifest.
            began: by time.perf_counter, when training stood still for it, if not now.

        Raises:
            CheckpointNotWritten: on all ranks, after too many failures in a row.
            Superseded: on all ranks, if a later start of the run has taken over.
        """
        began = time.perf_counter() if began is None else began
        self.settle()
        self._snapshot = self._copy.take(
            partition, step=step, packed_masks=packed_masks, state=state
        )
        self._start()
        self._stall_seconds = time.perf_counter() - began

    def settle(self) -> None:
        """Collective: wait until the write in flight is whole, or has failed somewhere.

        Raises:
            CheckpointNotWritten: on all ranks, after too many failures in a row.
            Superseded: on all ranks, if a later start of the run has taken over.
        """
        if self._thread is None or self._snapshot is None:
            return
        running = failed = superseded = 0
        while True:
            self._thread.join(_ROUND_SECONDS)
            is_alive = self._thread.is_alive()  # first: the thread sets its error before it ends
            mine = [is_alive, self._error is not None, isinstance(self._error, Superseded)]
            agreed = all_reduce_max(torch.tensor(mine, dtype=torch.int32))
            running, failed, superseded = agreed.tolist()
            if failed or not running:
                break
        if not failed:
            self._failures, self._thread = 0, None
            return
        self._abandoned.set()  # rank 0 may be waiting for the part that will not come
        self._thread.join()
        self._thread = None
        _barrier()  # nobody writes any more
        if self._snapshot.rank == 0:
            with contextlib.suppress(OSError):
                remove_part(self._folder, self._snapshot.step, self._attempt)
        _barrier()  # nobody writes this step again before the old part is gone
        if superseded:
            raise Superseded(f"{self._folder} belongs to a later start of this run")
        self._failures += 1
        if self._failures >= self._max_failures:
            self._give_up(self._snapshot.step)

    def finish(self) -> None:
        """Collective: wait for the last write, and try it again while it fails.

        Raises:
            CheckpointNotWritten: on all ranks, after too many failures in a row.
            Superseded: on all ranks, if a later start of the run has taken over.
        """
        self.settle()
        while self._failures:
            time.sleep(_RETRY_SECONDS * self._failures)  # alike on all ranks
            self._start()
            self.settle()

    def close(self) -> None:
        """Without a collective, for failures too: give a write in flight a moment to become whole.

        The other ranks may be gone, so a part that does not come is not waited for.
        """
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)
            self._abandoned.set()

    def figures(self) -> dict[str, float]:
        """Seconds that training stood still for the last save, and that the last whole write took.

        Right after a save that is the write before it, if there was one.
        """
        figures = {"checkpoint/stall_seconds": self._stall_seconds}
        if self._write_seconds is not None:
            figures["checkpoint/write_seconds"] = self._write_seconds
        return figures

    def _start(self) -> None:
        self._error = None
        self._abandoned.clear()
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        assert self._snapshot is not None
        step, started = self._snapshot.step, time.perf_counter()
        try:
            write_snapshot(
                self._folder,
                self._snapshot,
                attempt=self._attempt,
                abandoned=self._abandoned.is_set,
            )
        except Exception as error:
            self._error = error
            if not isinstance(error, Abandoned):
                log.error("the checkpoint of step %d is not written: %s", step, error)
                self._on_failure(step, str(error))
            return
        self._write_seconds = time.perf_counter() - started
        if self._snapshot.rank == 0:
            try:
                self._on_commit(step)
            except OSError as error:  # the checkpoint itself is whole
                log.warning("after the checkpoint of step %d: %s", step, error)

    def _give_up(self, step: int) -> None:
        if self._error is None or isinstance(self._error, Abandoned):
            raise RuntimeError(f"another rank could not write the checkpoint of step {step}")
        raise CheckpointNotWritten(
            f"the checkpoint of step {step} could not be written ({self._error}), {self._failures} "
            f"failure(s) in a row: see to the disk of {self._folder}; the checkpoints before are "
            "whole and the same command continues from the newest"
        )


def _barrier() -> None:
    """Collective: wait for all ranks."""
    all_reduce_max(torch.zeros(1, dtype=torch.int32))
