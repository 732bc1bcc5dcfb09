"""Rows of a task -> the micro-batches of one rank: a pure function of (seed, step, rank, ranks).

The rows of a step are as in pretraining (corpora/row_order.py); a short micro-step gets rows of
padding without a target. One example a row, padded to the
longest of its micro-batch; padding is a segment of its own, which no token of the text sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert.architecture import IGNORE_INDEX
from bert.corpora.randomness import Purpose
from bert.corpora.row_order import RowOrder
from bert.tasks.encoding import Int64Array, Row

_MULTIPLE = 8  # row lengths are multiples of it: kernels like that, and there are fewer shapes


@dataclass
class TaskMicroBatch:
    """One forward: R rows of T tokens. `rows` are their numbers in the split, at times below R."""

    input_ids: torch.Tensor  # int64 [R, T]
    token_type_ids: torch.Tensor  # int64 [R, T]
    position_ids: torch.Tensor  # int64 [R, T]
    cu_seqlens: torch.Tensor  # int32 [S + 1], where segments (texts and padding) begin, and R * T
    max_seqlen: int
    targets: torch.Tensor  # [R, ...] as Row.target; padded with -100, or NaN where it is a float
    rows: Int64Array

    def to(self, device: torch.device) -> dict[str, Any]:
        """The arguments of the model's forward, with the tensors on `device`."""
        return {
            key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in vars(self).items()
            if key != "rows"
        }


class TaskBatches:
    """The batches of one rank. `evaluation`: step 0 is the whole split, in order."""

    loss_name = "train/loss"

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        pad_id: int,
        seed: int,
        global_batch_rows: int,
        micro_batch_rows: int,
        rank: int,
        world_size: int,
        evaluation: bool = False,
    ) -> None:
        self._order = RowOrder(
            Purpose.TASK_ROW_ORDER,
            num_rows=len(rows),
            seed=seed,
            global_batch_rows=len(rows) if evaluation else global_batch_rows,
            micro_batch_rows=micro_batch_rows,
            rank=rank,
            world_size=world_size,
            evaluation=evaluation,
        )
        self.micro_steps = self._order.micro_steps
        self.rows = rows
        self._pad_id = pad_id
        self._micro_batch_rows = micro_batch_rows
        self._lengths = np.array([len(row.input_ids) for row in rows])
        self._loss_terms = np.array([row.loss_terms for row in rows])

    def epoch(self, step: int) -> int:
        """The epoch of the first row of the step's batch."""
        return self._order.epoch(step)

    def row_ids(self, step: int) -> Int64Array:
        """Rows of the global batch, int64 [B]: the same on every rank."""
        return self._order.batch(step)[1]

    def loss_terms(self, step: int) -> int:
        """Terms of the mean loss in the global batch, over all ranks."""
        return int(self._loss_terms[self.row_ids(step)].sum())

    def global_tokens(self, step: int) -> int:
        """Tokens of the global batch, special ones included, padding not."""
        return int(self._lengths[self.row_ids(step)].sum())

    def micro_batches(self, step: int) -> Iterator[TaskMicroBatch]:
        """This rank's `micro_steps` micro-batches."""
        (_, ids), size = self._order.own(step), self._micro_batch_rows
        # Rows of like length share a forward, and so little padding.
        ids = ids[np.argsort(self._lengths[ids], kind="stable")]
        for at in range(0, self.micro_steps * size, size):
            yield self._micro_batch(ids[at : at + size])

    def _micro_batch(self, ids: Int64Array) -> TaskMicroBatch:
        rows = [self.rows[i] for i in ids]
        longest = max((len(row.input_ids) for row in rows), default=1)
        width = -(-longest // _MULTIPLE) * _MULTIPLE
        shape = (self._micro_batch_rows, width)
        input_ids = np.full(shape, self._pad_id, np.int64)
        token_types, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        boundaries = [0]
        for at in range(self._micro_batch_rows):
            length = len(rows[at].input_ids) if at < len(rows) else 0
            if length:
                input_ids[at, :length] = rows[at].input_ids
                token_types[at, :length] = rows[at].token_type_ids
                positions[at, :length] = np.arange(length)
            if 0 < length < width:
                boundaries.append(at * width + length)
            boundaries.append((at + 1) * width)
        return TaskMicroBatch(
            input_ids=torch.from_numpy(input_ids),
            token_type_ids=torch.from_numpy(token_types),
            position_ids=torch.from_numpy(positions),
            cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
            max_seqlen=width,
            targets=self._targets(rows, width),
            rows=ids,
        )

    def _targets(self, rows: Sequence[Row], width: int) -> torch.Tensor:
        first = self.rows[0]
        one = first.target
        by_token = one.dtype == np.int64 and one.shape == first.input_ids.shape
        shape = (self._micro_batch_rows, *([width] if by_token else one.shape))
        ignored = IGNORE_INDEX if one.dtype == np.int64 else np.nan
        targets = np.full(shape, ignored, one.dtype)
        for at, row in enumerate(rows):
            if by_token:
                targets[at, : len(row.target)] = row.target
            else:
                targets[at] = row.target
        return torch.from_numpy(targets)
