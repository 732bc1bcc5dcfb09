"""How far a preparation is, for a progress bar with speed and time left."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bert.corpora.cleaning import CleanDocument
from bert.corpora.inputs import Input

CHARACTERS_PER_GZIP_BYTE = 2.7  # measured on Wikipedia and on novels


@dataclass(frozen=True)
class PrepareProgress:
    documents: int
    tokens: int
    seconds: float
    read_input_bytes: int  # as stored; estimated within the input being read
    input_bytes: int  # of all inputs, as stored; 0 where unknown (hub names)


class ProgressMeter:
    """How far reading is. Documents come input after input."""

    def __init__(self, inputs: Sequence[Input], *, started: float) -> None:
        self._sizes = {item.name: item.size_bytes for item in inputs}
        self._started = started
        self._current = ""
        self._finished_bytes = self._characters = self._documents = self._tokens = 0

    def add(self, document: CleanDocument, *, tokens: int) -> None:
        if document.input != self._current:
            self._finished_bytes += self._sizes.get(self._current, 0)
            self._current, self._characters = document.input, 0
        self._characters += len(document.text)
        self._documents += 1
        self._tokens += tokens

    def now(self) -> PrepareProgress:
        is_gzip = self._current.endswith(".gz")
        estimate = int(self._characters / (CHARACTERS_PER_GZIP_BYTE if is_gzip else 1))
        return PrepareProgress(
            documents=self._documents,
            tokens=self._tokens,
            seconds=time.monotonic() - self._started,
            read_input_bytes=self._finished_bytes
            + min(estimate, self._sizes.get(self._current, 0)),
            input_bytes=sum(self._sizes.values()),
        )
