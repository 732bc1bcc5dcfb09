"""Turns signals into a request that training notices at the next step's end.

The first SIGINT, SIGTERM or SIGUSR1 (SLURM's warning) asks for a checkpoint and an orderly end; the
second of them leaves at once. The request is a file in the run folder, so that it reaches workers in
other processes and on other nodes.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# The run is saved and not finished: the same command continues it (EX_TEMPFAIL of sysexits.h).
STOPPED_EXIT_CODE = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_request_stop(stop_file: Path) -> Iterator[None]:
    """While inside, signals raise the request. Main thread only."""
    received = 0

    def request(number: int, _: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received > 1:
            os._exit(128 + number)
        stop_file.touch()
        name = signal.Signals(number).name
        print(f"{name}: stopping at the next step's end, again to leave at once", flush=True)

    previous = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
