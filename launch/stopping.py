"""Turns signals into a request that training notices at the next step's end.

The first SIGINT, SIGTERM or SIGUSR1 (SLURM's warning) asks for a checkpoint and an orderly end; the
second of them leaves at once. The request is a file in the run folder, so that it reaches workers
in other processes and on other nodes.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from launch.run_folder import RunFolder

# The run is saved and not finished: the same command continues it (EX_TEMPFAIL of sysexits.h).
STOPPED_EXIT_CODE = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Signals this close are one request: torchrun passes on what the terminal has already sent to all.
_SAME_REQUEST_SECONDS = 1.0


@contextmanager
def signals_request_stop(stop_file: Path, *, say: bool = True) -> Iterator[None]:
    """While inside, signals raise the request, and `say` so. Main thread only."""
    first: float | None = None

    def request(number: int, _: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first > _SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if first is not None:
            return
        first = now
        stop_file.touch()
        if say:
            name = signal.Signals(number).name
            # Not print: the signal may have come in the middle of one, and that cannot be nested.
            os.write(
                1, f"{name}: stopping at the next step's end, again to leave at once\n".encode()
            )

    previous = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def report_end(
    folder: RunFolder, finished_steps: int, total_steps: int, *, ended_early: bool = False
) -> int:
    """Say how far the run is, and how it goes on if it was stopped; the exit code.

    `ended_early`: it has nothing left to do, whatever its number of steps (fine-tuning).
    """
    if ended_early or finished_steps >= total_steps:
        print(f"{folder.path} is complete: {finished_steps} steps", flush=True)
        return 0
    print(
        f"{folder.path} is stopped and saved at step {finished_steps} of {total_steps}: "
        "the same command continues it",
        flush=True,
    )
    return STOPPED_EXIT_CODE
