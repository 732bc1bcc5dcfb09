"""Which checkpoints of a run stay: the last few, every n-th step's, the best by validation loss."""

from collections.abc import Mapping
from pathlib import Path

from distributed.checkpoint.reading import list_steps, step_folder
from distributed.config import CheckpointConfig
from distributed.files import remove_folder


def choose_kept(
    steps: list[int], config: CheckpointConfig, losses: Mapping[int, float | None]
) -> set[int]:
    """Of `steps`, ascending, those that stay.

    Args:
        steps: of all checkpoints.
        config: the rules; each adds to what stays.
        losses: validation loss by step, None or absent where it was not measured. Of equal ones
            the earlier is better.
    """
    kept = set(steps[-config.keep_last :])
    if config.keep_every_steps is not None:
        kept |= {step for step in steps if step % config.keep_every_steps == 0}
    measured = [(loss, step) for step in steps if (loss := losses.get(step)) is not None]
    return kept | {step for _, step in sorted(measured)[: config.keep_best]}


def remove_old(
    folder: Path,
    *,
    newest: int,
    config: CheckpointConfig,
    losses: Mapping[int, float | None],
) -> None:
    """Remove what does not stay; called after `newest` was committed.

    Later ones are damaged, for the run started before them: they take no place from a good one.
    """
    steps = [step for step in list_steps(folder) if step <= newest]
    for step in sorted(set(steps) - choose_kept(steps, config, losses)):
        remove_folder(step_folder(folder, step))
    remove_folder(_refused(folder, newest))


def set_aside(folder: Path, *, newer_than: int) -> list[Path]:
    """Take refused checkpoints out of the way of those that a resumed run will write anew.

    They stay, hidden, until their step has a good one. Returns where they are now.
    """
    moved = []
    for step in list_steps(folder):
        if step > newer_than:
            remove_folder(_refused(folder, step))
            step_folder(folder, step).rename(_refused(folder, step))
            moved.append(_refused(folder, step))
    return moved


def _refused(folder: Path, step: int) -> Path:
    return folder / f".refused-{step_folder(folder, step).name}"
