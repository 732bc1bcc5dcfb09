"""What to do when figures go wrong: gradients that are not finite, and losses that jump.

An update whose gradient is not finite is not made, and the weights stay. What differs is whether,
and from where, training goes on:

    skip       with the next rows, up to so many times in a row
    stop       not at all
    rollback   from the last checkpoint, with the rows after the bad ones (PaLM's way, section 5.1
               of https://arxiv.org/abs/2204.02311: the same weights may meet them unharmed later)
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from distributed.errors import Unrecoverable
from training.config import NonFinitePolicy

_ROWS_SHOWN = 8


class GoBack(Exception):  # a request to the caller, not an error
    """Train again from the last checkpoint, whose next batch is `next_batch`."""

    def __init__(self, reason: str, next_batch: int) -> None:
        super().__init__(reason)
        self.next_batch = next_batch


def decide(
    policy: NonFinitePolicy, *, reason: str, in_a_row: int, most: int, next_batch: int
) -> None:
    """Return to go on with the next step; alike on all ranks.

    Args:
        policy: of the configuration.
        reason: what happened, for whoever reads it.
        in_a_row: skipped steps up to and with this one.
        most: how many of them are borne.
        next_batch: the one after the rows at hand.

    Raises:
        GoBack: to the last checkpoint.
        Unrecoverable: training is to end.
    """
    if policy == "stop":
        raise Unrecoverable(f"{reason} (train.on_non_finite is stop)")
    if policy == "rollback":
        raise GoBack(reason, next_batch)
    if in_a_row > most:
        raise Unrecoverable(
            f"{reason}: {in_a_row} in a row, and train.max_non_finite_steps is {most}"
        )


def describe(step: int, *, epoch: int, rows: Sequence[int]) -> str:
    """The update that was not made, and the rows of data that it was of."""
    shown = ", ".join(map(str, rows[:_ROWS_SHOWN])) + (", ..." if len(rows) > _ROWS_SHOWN else "")
    return (
        f"step {step}: the gradient is not finite and nothing was updated; its batch has "
        f"{len(rows)} rows, {shown} of epoch {epoch}"
    )


# A spike is reported, never acted on: an occasional false one costs a line.
_WINDOW = 20  # records
_FEWEST = 8  # before that, no opinion: a run begins with steep losses
_SPREADS = 10.0  # median absolute deviations; of normal noise that is 6.7 standard deviations
_LEAST_RISE = 0.05  # of the median: a converged loss has next to no spread


class SpikeDetector:
    """Remembers the last losses of one run."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def check(self, loss: float | None) -> str | None:
        """Take the next record's loss (None: not finite); what is wrong with it, if anything."""
        if loss is None or not math.isfinite(loss):
            return None  # told elsewhere, as a skipped update
        found = None
        if len(self._losses) >= _FEWEST:
            middle = median(self._losses)
            spread = median(abs(x - middle) for x in self._losses)
            if loss > middle + max(_SPREADS * spread, _LEAST_RISE * abs(middle)):
                found = f"a loss of {loss:.4f} after a median of {middle:.4f} (+-{spread:.4f})"
        self._losses.append(loss)  # a spike too: a loss that stays high is told once
        return found
