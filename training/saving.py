"""Saving a run in training: checked, written beside it, old ones removed."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from distributed.checkpoint.background import CheckpointWriter
from distributed.checkpoint.retention import remove_old
from distributed.config import CheckpointConfig
from distributed.zero import Engine
from sparsity.integrity import check_masks
from training.attempt import Attempt
from training.events import append_event
from training.folder import RunFolder, validation_by_step
from training.guards import GoBack
from training.metrics import Metrics
from training.state import TrainState

if TYPE_CHECKING:
    from sparsity.controller import SparsityController


@contextmanager
def checkpoint_writer(
    folder: RunFolder,
    attempt: Attempt,
    config: CheckpointConfig,
    *,
    on_commit: Callable[[int], None] = lambda _: None,
) -> Iterator[CheckpointWriter]:
    """Collective: a writer for the time of training; at the end the last checkpoint is whole.

    Args:
        folder: the run's.
        attempt: this start.
        config: what to keep.
        on_commit: called on rank 0, in the writer's thread, with the step of each checkpoint that
            has become visible, before old ones are removed.
    """

    def committed(step: int) -> None:
        on_commit(step)
        remove_old(
            folder.checkpoints,
            newest=step,
            config=config,
            losses=validation_by_step(folder.metrics_file),
        )

    writer = CheckpointWriter(
        folder.checkpoints,
        attempt=attempt.token,
        max_failures=config.max_failed_writes,
        on_commit=committed,
        on_failure=lambda step, reason: append_event(
            folder.events_file,
            "checkpoint",
            f"the checkpoint of step {step} is not written: {reason}",
        ),
    )
    try:
        yield writer
        writer.finish()
    except GoBack:
        writer.settle()  # on all ranks alike: the checkpoint in flight is the one to go back to
        raise
    finally:
        writer.close()


def save_run(
    writer: CheckpointWriter,
    state: TrainState,
    *,
    engine: Engine,
    sparsity: "SparsityController | None",
    metrics: Metrics,
    described: Mapping[str, Any],
) -> None:
    """Collective: begin to write a checkpoint of `state`, unless its masks do not hold.

    `described`: configuration, identity, ZeRO stage and the like, for the manifest.
    """
    began = time.perf_counter()
    packed_masks = sparsity.packed_masks() if sparsity is not None else {}
    if sparsity is not None:
        check_masks(sparsity, packed_masks)
    writer.save(
        engine.partition,
        step=state.step,
        packed_masks=packed_masks,
        began=began,
        state={
            **described,
            "train": state.to_dict(),
            "sparsity": asdict(sparsity.state) if sparsity is not None else None,
            "metrics": metrics.latest,
            "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        },
    )
    metrics.note(writer.figures())
