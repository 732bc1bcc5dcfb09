"""Turns signals into a request that training notices at the next step's end.

The first SIGINT, SIGTERM or SIGUSR1 (SLURM's warning) asks for a checkpoint and an orderly end; the
second of them leaves at once. The request is a file in the run folder, so that it reaches workers
in other processes and on other nodes; a person may create it too. Who trained on it removes it.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# The run is saved and not finished: the same command continues it (EX_TEMPFAIL of sysexits.h).
STOPPED_EXIT_CODE = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Signals this close are one request: torchrun passes on what the terminal has already sent to all.
_SAME_REQUEST_SECONDS = 1.0


class StopRequest:
    """Whether somebody asked the run to stop: by a signal to this process, or by the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._is_signalled = False
        self._is_written = False

    def __call__(self) -> bool:
        """Whether it was asked for; a file that could not be written before is tried again."""
        if self._is_signalled and not self._is_written:
            self.write()
        return self._is_signalled or is_there(self._file)

    def write(self) -> None:
        """Ask for it; what is in the file tells that no person wrote it."""
        self._is_signalled = True
        with suppress(OSError):  # a full disk: this process knows by itself
            self._file.write_text("a signal\n")
            self._is_written = True


def is_there(file: Path) -> bool:
    """Whether the file exists; one that cannot be looked for, for a moment, does not."""
    return os.path.exists(file)  # Path.exists raises where storage does not answer


def forget_signal(file: Path) -> None:
    """Remove what a signal to an earlier start left behind; a person's request stays."""
    with suppress(FileNotFoundError):
        if file.stat().st_size:
            file.unlink()


@contextmanager
def signals_request_stop(stop_file: Path, *, say: bool = True) -> Iterator[StopRequest]:
    """While inside, signals raise the request, and `say` so; then it is over. Main thread only."""
    request, first = StopRequest(stop_file), None

    def receive(number: int, _: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first > _SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if first is not None:
            return
        first = now
        request.write()
        if say:
            name = signal.Signals(number).name
            text = f"{name}: stopping at the next step's end, again to leave at once\n"
            # Not print: the signal may have come in the middle of one, and that cannot be nested.
            with suppress(OSError):  # nobody reads any more
                os.write(1, text.encode())

    previous = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        with suppress(OSError):
            stop_file.unlink(missing_ok=True)
