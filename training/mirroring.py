"""A run's copy in other storage (`checkpoint.mirror`): read at the start, kept up as it trains."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed.checkpoint.mirror import Mirror
from distributed.checkpoint.reading import Checkpoint, find_newest
from distributed.checkpoint.retention import choose_kept
from distributed.errors import BadInput, first_line
from training.config import RunConfig
from training.events import append_event
from training.folder import RunFolder, run_folder_of, validation_by_step
from training.session import hold_run

_LOOK_SECONDS = 2.0
_MOST_SECONDS = 300.0  # between two tries of a storage that does not answer
END_SECONDS = 120.0  # for what is not copied yet when training is over


def fetch_newer(config: RunConfig, *, say: Callable[[str], None]) -> None:
    """If the mirror has a later checkpoint than the run's folder, or that has none: go on from it.

    Raises:
        BadInput: the mirror is another run's; or there is no other checkpoint, and it cannot be
            read or has none that is good.
    """
    if config.checkpoint.mirror is None:
        return
    mirror, folder = _mirror_of(config), run_folder_of(config)
    newest, at = _newest(folder)
    try:
        mirror.check_owner(folder.path)
        if max(mirror.steps(), default=-1) <= at:
            return
        with hold_run(folder):
            newest, at = _newest(folder)  # another launcher may have trained meanwhile
            step, refused = mirror.download(folder.path, _files(folder), newer_than=at)
    except OSError as error:
        problem = f"checkpoint.mirror ({mirror.uri}) cannot be read ({first_line(error)})"
        if newest is None:
            raise BadInput(f"{problem}: see to it, or set it to null to start anew") from error
        say(f"{problem}; going on from {newest.path}")
        return
    for reason in refused:
        append_event(folder.events_file, "damage", f"passed over a damaged checkpoint: {reason}")
    if step is not None:
        say(f"fetched the checkpoint of step {step} from {mirror.uri}")
    elif newest is None:
        raise BadInput(
            f"checkpoint.mirror ({mirror.uri}) has checkpoints and none can be used "
            f"({refused[0]}): set it to null to start anew"
        )


def copy_the_rest(config: RunConfig, *, say: Callable[[str], None]) -> None:
    """Copy what an earlier start of a run that is complete left uncopied.

    Raises:
        BadInput: somebody else holds the run.
    """
    if config.checkpoint.mirror is not None:
        with hold_run(run_folder_of(config)), mirrored(config, say=say):
            pass


@contextmanager
def mirrored(config: RunConfig, *, say: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile, each checkpoint that appears in the run's folder is copied to its mirror.

    A copy that fails is an event, and is tried again, ever more seldom; it never stops the run. At
    the end what is left to copy gets `END_SECONDS`.
    """
    if config.checkpoint.mirror is None:
        yield
        return
    mirror, folder = _mirror_of(config), run_folder_of(config)
    over, problem = threading.Event(), ""

    def keep(steps: list[int]) -> set[int]:
        return choose_kept(steps, config.checkpoint, validation_by_step(folder.metrics_file))

    def copy() -> str:
        try:
            mirror.upload(folder.path, _files(folder), keep)
        except Exception as error:  # pyarrow raises OSError, and its own
            problem = f"no copy at {mirror.uri}: {first_line(error)}"
            append_event(folder.events_file, "mirror", problem)
            return problem
        return ""

    def keep_up() -> None:
        nonlocal problem
        wait = _LOOK_SECONDS
        while True:
            is_last = over.wait(wait)
            problem = copy()
            if is_last:
                return
            wait = min(2 * wait, _MOST_SECONDS) if problem else _LOOK_SECONDS

    thread = threading.Thread(target=keep_up, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LOOK_SECONDS)
        if thread.is_alive():
            say(f"copying to {mirror.uri}, for at most {END_SECONDS:g} s")
            thread.join(END_SECONDS)
        if thread.is_alive():
            problem = f"no whole copy at {mirror.uri} after {END_SECONDS:g} s more"
        if problem:
            say(f"{problem}; the run's folder has it, and the same command tries again")


def _newest(folder: RunFolder) -> tuple[Checkpoint | None, int]:
    newest, _ = find_newest(folder.checkpoints)
    return newest, newest.step if newest is not None else -1


def _mirror_of(config: RunConfig) -> Mirror:
    assert config.checkpoint.mirror is not None
    owner_file = run_folder_of(config).identity_file.name
    return Mirror(config.checkpoint.mirror, config.name, owner_file=owner_file)


def _files(folder: RunFolder) -> list[str]:
    """What a checkpoint needs beside it."""
    return [f.name for f in (folder.metrics_file, folder.passed_over_file, folder.config_file)]
