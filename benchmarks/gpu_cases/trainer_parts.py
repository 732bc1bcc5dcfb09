"""What Hugging Face's Trainer is given: rows that are masked already, and a clock."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.bert_step import FIRST_WORD, VOCAB_SIZE


class MaskedRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random rows with labels at 15 % of the tokens; a row is a view."""

    def __init__(self, rows: int, row_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (rows, row_tokens)
        self._ids = torch.randint(FIRST_WORD, VOCAB_SIZE, shape, generator=generator)
        is_masked = torch.rand(shape, generator=generator) < 0.15
        self._labels = torch.where(is_masked, self._ids, -100)
        self._ones = torch.ones(row_tokens, dtype=torch.long)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self._ids[row],
            "attention_mask": self._ones,
            "labels": self._labels[row],
        }


class StepClock(TrainerCallback):
    """Seconds from the end of step `first` to the end of step `last`, counted from 1."""

    def __init__(self, first: int, last: int, synchronize: Callable[[], None]) -> None:
        self._marks = {first, last}
        self._synchronize = synchronize
        self._times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self._marks:
            self._synchronize()
            self._times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        first, last = self._times
        return last - first
