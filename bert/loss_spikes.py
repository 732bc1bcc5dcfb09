"""Loss spikes: a record whose loss lies far above those just before it."""

import math
from collections import deque
from statistics import median

# A spike is reported, never acted on: an occasional false one costs a line.
_WINDOW = 20  # records
_FEWEST = 8  # before that, no opinion: a run begins with steep losses
_SPREADS = 10.0  # median absolute deviations; of normal noise that is 6.7 standard deviations
_LEAST_RISE = 0.05  # of the median: a converged loss has next to no spread


class SpikeDetector:
    """Remembers the last losses of one run."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def look(self, loss: float | None) -> str | None:
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
