"""Packed rows -> the micro-batches of one rank: a pure function of (seed, step, rank, world size).

    order    the rows of epoch e are a permutation keyed by (seed, e); epochs follow without a gap
    batch    step s holds rows [s*B, (s+1)*B) of that endless order, whatever the number of ranks P
    rank     rank r takes rows [r*B//P, (r+1)*B//P) of the batch
    micro    every rank runs ceil(ceil(B/P) / R) micro-steps of R rows of T tokens; a rank that has
             fewer rows gets rows of padding with nothing masked

So resume, and another number of ranks, need only the step. Masked positions depend on (seed, epoch,
row) alone. Shapes: R micro_batch_rows, T row_tokens, S segments, M capacity for masked positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert.config import DataConfig
from bert.corpora.masking import build_masker, masked_count
from bert.corpora.packing import SPECIALS_PER_SEGMENT, PackedRows, pack_corpus
from bert.corpora.randomness import Purpose
from bert.corpora.row_order import Int64Array, RowOrder
from bert.corpora.shards import TokenCorpus, open_corpus
from bert.vocabulary import Vocabulary
from distributed.errors import BadInput

IGNORED_LABEL = -100
# Validation rows and their masks are the same for every run, whatever its seed.
VALIDATION_SEED = 0


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


@dataclass
class MicroBatch:
    """One forward pass. Places are counted over the R * T tokens, row after row."""

    input_ids: torch.Tensor  # int64 [R, T]
    position_ids: torch.Tensor  # int64 [R, T], from 0 in each segment; 0 in padding
    cu_seqlens: torch.Tensor  # int32 [S + 1] segment boundaries, 0 to R * T; padding has its own
    max_seqlen: int  # bound on a segment's length, the same for every micro-batch
    masked_positions: torch.Tensor  # int64 [M] places, then 0 up to the capacity
    labels: torch.Tensor  # int64 [M] the ids to predict there, then -100 up to the capacity

    def to(self, device: torch.device) -> dict[str, Any]:
        """The arguments of the model's forward, with the tensors on `device`."""
        return {
            key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in vars(self).items()
        }


class RowBatches:
    """The batches of one rank. Every method is a pure function of its arguments.

    `evaluation`: the batch of every step is the first `global_batch_rows` rows (all, if there are
    fewer), masks are those of epoch 0, and each chosen position becomes [MASK].
    """

    loss_name = "train/mlm_loss"

    def __init__(
        self,
        corpus: TokenCorpus,
        rows: PackedRows,
        *,
        vocabulary: Vocabulary,
        mlm_probability: float,
        seed: int,
        global_batch_rows: int,
        micro_batch_rows: int,
        rank: int,
        world_size: int,
        evaluation: bool = False,
    ) -> None:
        self._order = RowOrder(
            Purpose.ROW_ORDER,
            num_rows=rows.num_rows,
            seed=seed,
            global_batch_rows=global_batch_rows,
            micro_batch_rows=micro_batch_rows,
            rank=rank,
            world_size=world_size,
            evaluation=evaluation,
        )
        self.corpus = corpus
        self.rows = rows
        self.vocabulary = vocabulary
        self.global_batch_rows = self._order.global_batch_rows
        self.micro_batch_rows = micro_batch_rows
        self.micro_steps = self._order.micro_steps
        self.evaluation = evaluation
        self._masker = build_masker(vocabulary, seed=seed, always_mask=evaluation)
        self._masked_per_row = masked_count(rows.maskable_per_row, mlm_probability=mlm_probability)
        most_maskable = np.array([rows.row_tokens - SPECIALS_PER_SEGMENT])
        most_masked = masked_count(most_maskable, mlm_probability=mlm_probability)
        self.masked_capacity = micro_batch_rows * int(most_masked[0])

    def epoch(self, step: int) -> int:
        """The epoch of the first row of the step's batch."""
        return self._order.epoch(step)

    def row_ids(self, step: int) -> Int64Array:
        """The rows of the global batch, `int64 [B]`: the same on every rank."""
        return self._order.batch(step)[1]

    def loss_terms(self, step: int) -> int:
        """Terms of the mean loss: the masked tokens of the global batch."""
        return self.global_masked_tokens(step)

    def global_masked_tokens(self, step: int) -> int:
        """Masked tokens of the global batch, on all ranks together."""
        return int(self._masked_per_row[self.row_ids(step)].sum())

    def global_tokens(self, step: int) -> int:
        """Tokens of the global batch, special ones included, padding not."""
        return int(self.rows.tokens_per_row[self.row_ids(step)].sum(dtype=np.int64))

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's `micro_steps` micro-batches of the step."""
        epochs, rows = self._order.own(step)
        size = self.micro_batch_rows
        for first in range(0, self.micro_steps * size, size):
            yield self._micro_batch(epochs[first : first + size], rows[first : first + size])

    def _micro_batch(self, epochs: Int64Array, rows: Int64Array) -> MicroBatch:
        row_tokens = self.rows.row_tokens
        shape = (self.micro_batch_rows, row_tokens)
        input_ids = np.full(shape, self.vocabulary.pad_id, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        masked_positions = np.zeros(self.masked_capacity, dtype=np.int64)
        labels = np.full(self.masked_capacity, IGNORED_LABEL, dtype=np.int64)
        boundaries = [0]
        masked = 0
        for index in range(self.micro_batch_rows):
            lengths: list[int] = []
            if index < len(rows):
                row = int(rows[index])
                lengths = self._fill_row(row, input_ids[index], position_ids[index])
                chosen, ids = self._mask(row, input_ids[index], epoch=int(epochs[index]))
                there = slice(masked, masked + len(chosen))
                masked_positions[there] = chosen + index * row_tokens
                labels[there] = ids
                masked += len(chosen)
            boundaries.extend(self._boundaries(lengths, row_start=index * row_tokens))
        return MicroBatch(
            input_ids=torch.from_numpy(input_ids),
            position_ids=torch.from_numpy(position_ids),
            cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
            max_seqlen=self.rows.max_seq_len,
            masked_positions=torch.from_numpy(masked_positions),
            labels=torch.from_numpy(labels),
        )

    def _fill_row(self, row: int, input_ids: Int64Array, position_ids: Int64Array) -> list[int]:
        """Write a row's segments into `input_ids` [T] and `position_ids` [T]; their lengths."""
        packed = self.rows
        first, end = packed.row_offsets[row : row + 2].tolist()
        lengths: list[int] = (packed.segment_length[first:end] + SPECIALS_PER_SEGMENT).tolist()
        starts = packed.segment_start[first:end].tolist()
        shards = packed.segment_shard[first:end].tolist()
        at = 0
        for shard, start, length in zip(shards, starts, lengths, strict=True):
            last = at + length - 1
            input_ids[at] = self.vocabulary.cls_id
            input_ids[at + 1 : last] = self.corpus.read(
                shard=shard, start=start, length=length - SPECIALS_PER_SEGMENT
            )
            input_ids[last] = self.vocabulary.sep_id
            position_ids[at : last + 1] = np.arange(length)
            at = last + 1
        return lengths

    def _mask(
        self, row: int, input_ids: Int64Array, *, epoch: int
    ) -> tuple[Int64Array, Int64Array]:
        candidates = self._masker.maskable_positions(input_ids)
        if len(candidates) != self.rows.maskable_per_row[row]:
            # Ranks would disagree on the number of masked tokens, so the loss would be wrong.
            raise BadInput(
                f"Row {row} of the corpus does not hold the tokens that its shards' index tells: a "
                "token file was changed after `sparsebert prepare`, so prepare it again."
            )
        count = int(self._masked_per_row[row])
        return self._masker.mask_row(input_ids, candidates, count=count, epoch=epoch, row=row)

    def _boundaries(self, lengths: list[int], *, row_start: int) -> Iterator[int]:
        """Ends of a row's segments, then of pieces of its padding no longer than a segment."""
        at = 0
        for length in lengths:
            at += length
            yield row_start + at
        while at < self.rows.row_tokens:
            at = min(at + self.rows.max_seq_len, self.rows.row_tokens)
            yield row_start + at


def build_training_batches(
    config: DataConfig,
    *,
    vocabulary: Vocabulary,
    seed: int,
    global_batch_rows: int,
    micro_batch_rows: int,
    rank: int,
    world_size: int,
    cache_dir: Path | None = None,
) -> RowBatches:
    """Open, pack (or take from the cache) and batch `config.shards`."""
    return _build_batches(
        config,
        config.shards,
        vocabulary=vocabulary,
        seed=seed,
        cache_dir=cache_dir,
        global_batch_rows=global_batch_rows,
        micro_batch_rows=micro_batch_rows,
        rank=rank,
        world_size=world_size,
        evaluation=False,
    )


def build_validation_batches(
    config: DataConfig,
    shards: Sequence[Path],
    *,
    vocabulary: Vocabulary,
    rows: int,
    micro_batch_rows: int,
    rank: int,
    world_size: int,
    cache_dir: Path | None = None,
) -> RowBatches:
    """The first `rows` rows of a validation set, in the layout of `config`; take step 0 of them."""
    return _build_batches(
        config,
        shards,
        vocabulary=vocabulary,
        seed=VALIDATION_SEED,
        cache_dir=cache_dir,
        global_batch_rows=rows,
        micro_batch_rows=micro_batch_rows,
        rank=rank,
        world_size=world_size,
        evaluation=True,
    )


def _build_batches(
    config: DataConfig,
    shards: Sequence[Path],
    *,
    vocabulary: Vocabulary,
    seed: int,
    cache_dir: Path | None,
    **batch: Any,
) -> RowBatches:
    corpus = open_corpus(shards, vocabulary=vocabulary)
    rows = pack_corpus(
        corpus,
        max_seq_len=config.max_seq_len,
        row_tokens=config.row_tokens,
        seed=seed,
        cache_dir=cache_dir,
    )
    return RowBatches(
        corpus,
        rows,
        vocabulary=vocabulary,
        mlm_probability=config.mlm_probability,
        seed=seed,
        **batch,
    )
