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
from training.folder import parse_record

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
    """Reads what is added to the file from now on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = file.stat().st_size if file.exists() else 0

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last call, whole lines only."""
        try:
            with open(self._file, "rb") as opened:
                opened.seek(self._at)
                data = opened.read()
        except OSError:  # not there yet, or storage does not answer for a moment
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        events = map(parse_record, whole.splitlines())
        return [event for event in events if event is not None and "message" in event]

    def tell(self, say: Callable[[str], None]) -> bool:
        """`say` what came since the last call; False, for no event by itself ends a run."""
        for event in self.poll():
            say(event["message"])
        return False
