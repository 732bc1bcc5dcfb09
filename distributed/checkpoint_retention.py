"""Which checkpoints of a run stay."""

from pathlib import Path

from distributed.checkpoint import list_steps, step_folder
from distributed.files import remove_folder


def remove_old(folder: Path, *, newest: int, keep_last: int) -> None:
    """Remove all but the last `keep_last` up to `newest`; called after `newest` was committed.

    Later ones are damaged, for the run started before them: they take no place from a good one.
    """
    steps = [step for step in list_steps(folder) if step <= newest]
    for step in steps[:-keep_last]:
        remove_folder(step_folder(folder, step))
    remove_folder(_refused(folder, newest))


def set_aside(folder: Path, *, newer_than: int) -> None:
    """Take refused checkpoints out of the way of those that a resumed run will write anew.

    They stay, hidden, until their step has a good one.
    """
    for step in list_steps(folder):
        if step > newer_than:
            path = step_folder(folder, step)
            remove_folder(_refused(folder, step))
            path.rename(_refused(folder, step))


def _refused(folder: Path, step: int) -> Path:
    return folder / f".refused-{step_folder(folder, step).name}"
