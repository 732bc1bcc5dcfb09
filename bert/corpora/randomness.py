"""Random bits as a pure function of where they are used: nothing is stored, nothing advances.

Only the raw 64-bit output of Philox is used. NumPy promises to keep it as it is, which it does not
for `permutation`, `choice` or `integers`: so an upgrade cannot change the order of the data.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """Keeps streams of the same seed apart. The numbers are part of the data order: never reuse."""

    ROW_ORDER = 1
    MASKING = 2
    DEAL_SEGMENTS = 3
    SHUFFLE_ROWS = 4
    TASK_ROW_ORDER = 5


def random_bits(
    purpose: Purpose, *, seed: int, count: int, epoch: int = 0, row: int = 0
) -> npt.NDArray[np.uint64]:
    """Independent uniform 64-bit integers, `uint64 [count]`."""
    # Philox counts up in the lowest word: the upper two separate the streams.
    counter = np.array([0, 0, epoch, row], dtype=np.uint64)
    key = np.array([seed & WORD, int(purpose)], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


def random_permutation(
    purpose: Purpose, *, seed: int, count: int, epoch: int = 0
) -> npt.NDArray[np.int64]:
    """A uniform permutation of 0 .. count-1, `int64 [count]`."""
    bits = random_bits(purpose, seed=seed, count=count, epoch=epoch)
    return np.argsort(bits, kind="stable")
