"""Which rows a step's batch holds, and which of them are this rank's: pretraining and fine-tuning.

Epochs are permutations keyed by (purpose, seed, epoch) and follow each other without a gap. A rank
takes its slice of the global batch, and all ranks run the same number of micro-steps.

Legend: B rows of the global batch.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bert.corpora.randomness import Purpose, random_permutation
from distributed.errors import BadInput

Int64Array = npt.NDArray[np.int64]


class RowOrder:
    """The rows of each step. Every method is a pure function of its arguments."""

    def __init__(
        self,
        purpose: Purpose,
        *,
        num_rows: int,
        seed: int,
        global_batch_rows: int,
        micro_batch_rows: int,
        rank: int,
        world_size: int,
        evaluation: bool,
    ) -> None:
        """Of `num_rows` rows; `evaluation`: every step has the first ones, in order.

        Raises:
            BadInput: a rank would have no row.
        """
        if evaluation:
            global_batch_rows = min(global_batch_rows, num_rows)
        elif global_batch_rows < world_size:
            raise BadInput(
                f"train.global_batch_rows is {global_batch_rows} and launch.num_workers is "
                f"{world_size}: each worker needs a row of every batch, so raise the first or "
                "lower the second."
            )
        assert micro_batch_rows > 0 and 0 <= rank < world_size
        self.global_batch_rows = global_batch_rows
        self._num_rows, self._evaluation = num_rows, evaluation
        self._own = slice(
            rank * global_batch_rows // world_size, (rank + 1) * global_batch_rows // world_size
        )
        largest_share = -(-global_batch_rows // world_size)
        self.micro_steps = -(-largest_share // micro_batch_rows)
        # A batch touches two epochs where it runs over the end of one.
        self._order_of = lru_cache(maxsize=2)(
            lambda epoch: random_permutation(purpose, seed=seed, count=num_rows, epoch=epoch)
        )

    def epoch(self, step: int) -> int:
        """The epoch of the first row of the step's batch."""
        return 0 if self._evaluation else step * self.global_batch_rows // self._num_rows

    def batch(self, step: int) -> tuple[Int64Array, Int64Array]:
        """Epoch and row of each row of the global batch, both int64 [B]: the same on every rank."""
        size = self.global_batch_rows
        if self._evaluation:
            return np.zeros(size, dtype=np.int64), np.arange(size)
        epochs, within = np.divmod(np.arange(step * size, (step + 1) * size), self._num_rows)
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._order_of(int(epoch))[within[epochs == epoch]]
        return epochs, rows

    def own(self, step: int) -> tuple[Int64Array, Int64Array]:
        """This rank's part of the batch."""
        epochs, rows = self.batch(step)
        return epochs[self._own], rows[self._own]
