"""What happens to a run besides its figures: a JSON line an event, told to the user as it comes.

Written by whichever process sees it, read by the launcher: skipped updates, checkpoints that could
not be written, damaged ones that were passed over, loss spikes.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.files import append_whole
from training.tail import Tail

log = logging.getLogger(__name__)


def append_event(file: Path, kind: str, message: str, **details: Any) -> None:
    """Add one line; a disk that takes nothing more costs the line, not the run."""
    event = {"time": round(time.time(), 3), "kind": kind, "message": message, **details}
    log.info("%s: %s", kind, message)
    try:
        # One write of one line: lines of several processes do not mix.
        append_whole(file, json.dumps(event, allow_nan=False).encode() + b"\n")
    except OSError as error:
        log.error("the event is not recorded: %s", error)


class EventTail:
    """Tells what is added to the file from now on."""

    def __init__(self, file: Path) -> None:
        self._tail = Tail(file, skip_existing=True)

    def tell(self, say: Callable[[str], None]) -> None:
        """`say` the events that came since the last call."""
        for event in self._tail.poll():
            if "message" in event:  # a line of another kind is passed over
                say(event["message"])
