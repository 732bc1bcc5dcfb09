"""A run's copy in other storage (`checkpoint.mirror`): read at the start, kept up as it trains."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed.checkpoint import list_steps
from distributed.errors import BadInput, first_line
from distributed.mirror import Mirror
from launch.run_events import append_event
from launch.run_folder import RunFolder, run_folder_of
from launch.run_setup import AnyRunConfig, hold_run

_LOOK_SECONDS = 2.0
_MOST_SECONDS = 300.0  # between two tries of a storage that does not answer


def fetch_missing(config: AnyRunConfig, *, say: Callable[[str], None]) -> None:
    """If the run's folder has no checkpoint and its mirror has one, go on from there.

    Raises:
        BadInput: the mirror cannot be read, or it has checkpoints and none is good.
    """
    if config.checkpoint.mirror is None:
        return
    mirror, folder = Mirror(config.checkpoint.mirror, config.name), run_folder_of(config)
    if list_steps(folder.checkpoints):
        return
    try:
        if not mirror.steps():
            return
        with hold_run(folder):
            step, refused = mirror.download(folder.path, _files(folder))
    except OSError as error:
        raise BadInput(
            f"checkpoint.mirror ({mirror.uri}) cannot be read ({first_line(error)}): see "
            "to it, or set it to null to start anew"
        ) from error
    for reason in refused:
        append_event(folder.events_file, "damage", f"passed over a damaged checkpoint: {reason}")
    if step is None:
        raise BadInput(
            f"checkpoint.mirror ({mirror.uri}) has checkpoints and none can be used "
            f"({refused[0]}): set it to null to start anew"
        )
    say(f"fetched the checkpoint of step {step} from {mirror.uri}")


@contextmanager
def kept_up(config: AnyRunConfig) -> Iterator[None]:
    """Meanwhile, each checkpoint that appears in the run's folder is copied to its mirror.

    A copy that fails is told and tried again, ever more seldom; it never stops the run.
    """
    if config.checkpoint.mirror is None:
        yield
        return
    mirror, folder = Mirror(config.checkpoint.mirror, config.name), run_folder_of(config)
    over = threading.Event()

    def copy() -> bool:
        try:
            mirror.upload(folder.path, _files(folder))
        except Exception as error:  # pyarrow raises OSError, and its own
            append_event(
                folder.events_file, "mirror", f"no copy at {mirror.uri}: {first_line(error)}"
            )
            return False
        return True

    def keep_up() -> None:
        wait = _LOOK_SECONDS
        while not over.wait(wait):
            wait = _LOOK_SECONDS if copy() else min(2 * wait, _MOST_SECONDS)

    thread = threading.Thread(target=keep_up, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        copy()


def _files(folder: RunFolder) -> list[str]:
    """What a checkpoint needs beside it."""
    files = folder.identity_file, folder.metrics_file, folder.passed_over_file, folder.config_file
    return [file.name for file in files]
