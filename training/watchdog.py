"""A worker that makes no progress ends itself, so that its group is replaced.

Every rank watches its own steps. When one rank hangs, the others hang in the next collective, and
so each of them notices too: their ends break the group even where the hanging process itself cannot
act, as one that was stopped.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

EXIT_CODE = 1
_LOOKS = 20  # in one limit
# Before the first step, at least: checkpoints are verified and engines built then.
_START_SECONDS = 600.0
_LAST_WORDS_SECONDS = 10.0


class Watchdog:
    """Ends this process when `beat` is not called for `limit_seconds`."""

    def __init__(self, limit_seconds: float, *, stacks: Path, tell: Callable[[str], None]) -> None:
        """Watch from now on.

        Args:
            limit_seconds: the longest step, with its validation and saving, that is no hang.
            stacks: where to write what every thread was doing.
            tell: called with a sentence before the end.
        """
        self._limit = limit_seconds
        self._stacks = stacks
        self._tell = tell
        self._last = time.monotonic()
        self._started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Another step is done."""
        self._started = True
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        each = self._limit / _LOOKS
        looked = time.monotonic()
        while not self._stop.wait(each):
            now = time.monotonic()
            if now - looked > 4 * each:
                # This process itself was stopped or starved: it cannot blame anybody yet.
                self._last = max(self._last, now - self._limit / 2)
            looked = now
            limit = self._limit if self._started else max(self._limit, _START_SECONDS)
            if now - self._last > limit:
                # The disk may be what hangs: then the end comes without a word.
                last_words = threading.Timer(_LAST_WORDS_SECONDS, os._exit, [EXIT_CODE])
                last_words.daemon = True
                last_words.start()
                with open(self._stacks, "a") as out:
                    faulthandler.dump_traceback(out)
                self._tell(
                    f"no step was finished for {limit:g} s: this worker ends, to be replaced "
                    f"(what it was doing: {self._stacks})"
                )
                logging.shutdown()
                os._exit(EXIT_CODE)
