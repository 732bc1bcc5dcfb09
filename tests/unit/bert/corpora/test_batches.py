import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bert.config import DataConfig
from bert.corpora.batches import (
    MicroBatch,
    RowBatches,
    build_training_batches,
    build_validation_batches,
)
from bert.corpora.packing import pack_corpus
from bert.corpora.shards import TokenCorpus, open_corpus
from bert.vocabulary import Vocabulary
from distributed.errors import BadInput
from tests.unit.bert.corpora.conftest import Prepared

MakeBatches = Callable[..., RowBatches]
Row = tuple[tuple[int, ...], ...]
TOKENS = 96
LONGEST = 32


@pytest.fixture
def make_batches(make_corpus: Callable[..., TokenCorpus], vocabulary: Vocabulary) -> MakeBatches:
    corpus = make_corpus([20, 400, 33, 9, 61], [150, 5, 88], unknown_every=11)
    rows = pack_corpus(corpus, max_seq_len=LONGEST, row_tokens=TOKENS, seed=5)

    def make(
        *,
        rank: int = 0,
        world_size: int = 1,
        batch: int = 5,
        micro: int = 2,
        seed: int = 5,
        evaluation: bool = False,
        probability: float = 0.15,
    ) -> RowBatches:
        return RowBatches(
            corpus,
            rows,
            vocabulary=vocabulary,
            mlm_probability=probability,
            seed=seed,
            global_batch_rows=batch,
            micro_batch_rows=micro,
            rank=rank,
            world_size=world_size,
            evaluation=evaluation,
        )

    return make


def real_rows(batch: MicroBatch) -> list[Row]:
    """Each row that is not padding: ids, position ids, segment ends, masked places and labels."""
    rows: list[Row] = []
    valid = batch.labels != -100
    places, labels = batch.masked_positions[valid], batch.labels[valid]
    ends = batch.cu_seqlens[1:].tolist()
    for index, ids in enumerate(batch.input_ids):
        here = places // TOKENS == index
        if not ids.any():
            assert not here.any()
            continue
        rows.append(
            (
                tuple(ids.tolist()),
                tuple(batch.position_ids[index].tolist()),
                tuple(
                    e - index * TOKENS for e in ends if index * TOKENS < e <= (index + 1) * TOKENS
                ),
                tuple((places[here] - index * TOKENS).tolist()),
                tuple(labels[here].tolist()),
            )
        )
    return rows


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("batch", [3, 4, 5, 11])
def test_batches_are_the_same_for_every_world_size_and_micro_batch(
    make_batches: MakeBatches, batch: int, evaluation: bool
) -> None:
    def run(world_size: int, micro: int, step: int) -> list[Row]:
        rows = []
        for rank in range(world_size):
            batches = make_batches(
                rank=rank, world_size=world_size, batch=batch, micro=micro, evaluation=evaluation
            )
            found = list(batches.micro_batches(step))
            share = math.ceil(batches.global_batch_rows / world_size)
            assert len(found) == batches.micro_steps == math.ceil(share / micro)
            for item in found:
                rows += real_rows(item)
        return rows

    for step in (0, 1, 7):
        expected = run(1, 1, step)
        assert len(expected) == (min(batch, make_batches().rows.num_rows) if evaluation else batch)
        for world_size in (1, 2, 3):
            for micro in (1, 2, 4, 7):
                assert run(world_size, micro, step) == expected


def test_counts_are_known_without_reading_tokens(make_batches: MakeBatches) -> None:
    for world_size in (1, 2, 3):
        ranks = [make_batches(rank=r, world_size=world_size) for r in range(world_size)]
        for step in range(4):
            masked = tokens = 0
            for rank in ranks:
                for batch in rank.micro_batches(step):
                    masked += int((batch.labels != -100).sum())
                    tokens += sum(token != 0 for row in real_rows(batch) for token in row[0])
            assert {rank.global_masked_tokens(step) for rank in ranks} == {masked}
            assert {rank.global_tokens(step) for rank in ranks} == {tokens}


def test_each_epoch_holds_every_row_once_and_batches_run_over_its_end(
    make_batches: MakeBatches,
) -> None:
    batches = make_batches(batch=5)
    rows = batches.rows.num_rows
    assert rows % 5 != 0
    order = np.concatenate([batches.row_ids(step) for step in range(rows)])  # 5 epochs
    epochs = order.reshape(5, rows)
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5
    assert batches.epoch(0) == 0 and batches.epoch(rows // 5) == 0 and batches.epoch(rows - 1) == 4
    assert not np.array_equal(make_batches(seed=6).row_ids(0), batches.row_ids(0))
    # A batch larger than the corpus runs over several epochs.
    large = make_batches(batch=2 * rows + 1)
    assert np.array_equal(large.row_ids(0), order[: 2 * rows + 1])


def test_masks_change_with_the_epoch(make_batches: MakeBatches) -> None:
    batches = make_batches(batch=1, micro=1)
    rows = batches.rows.num_rows
    steps = [
        int(
            np.flatnonzero([batches.row_ids(s)[0] == 3 for s in range(e * rows, (e + 1) * rows)])[0]
        )
        + e * rows
        for e in range(3)
    ]
    places = {real_rows(next(batches.micro_batches(step)))[0][3] for step in steps}
    assert len(places) == 3


def test_micro_batch_layout(make_batches: MakeBatches, vocabulary: Vocabulary) -> None:
    # 4 rows over 3 ranks in micro-batches of 3: every rank has a row of padding at least.
    batches = make_batches(rank=1, world_size=3, batch=4, micro=3)
    capacity = 3 * round(0.15 * (TOKENS - 2))
    for step in range(6):
        for batch in batches.micro_batches(step):
            assert batch.input_ids.shape == batch.position_ids.shape == (3, TOKENS)
            assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
            assert batch.masked_positions.dtype == batch.labels.dtype == torch.int64
            assert batch.masked_positions.shape == batch.labels.shape == (capacity,)
            assert batch.cu_seqlens.dtype == torch.int32
            assert batch.max_seqlen == LONGEST
            assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == 3 * TOKENS
            lengths = batch.cu_seqlens.diff()
            assert lengths.min() > 0 and lengths.max() <= LONGEST
            assert set(range(0, 3 * TOKENS, TOKENS)) <= set(batch.cu_seqlens.tolist())
            ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
            for start, end in batch.cu_seqlens.unfold(0, 2, 1).tolist():
                if ids[start] == vocabulary.pad_id:
                    assert not ids[start:end].any() and not positions[start:end].any()
                else:
                    assert ids[start] == vocabulary.cls_id and ids[end - 1] == vocabulary.sep_id
                    assert positions[start:end].tolist() == list(range(end - start))
            valid = batch.labels != -100
            assert not torch.isin(batch.labels[valid], torch.tensor(vocabulary.special_ids)).any()
            assert not batch.masked_positions[~valid].any()


def test_rows_hold_the_corpus_tokens(make_batches: MakeBatches, vocabulary: Vocabulary) -> None:
    """With the masked tokens put back, an epoch gives each segment's own tokens."""
    batches = make_batches(batch=1, micro=1)
    rows, corpus = batches.rows, batches.corpus
    for step in range(rows.num_rows):
        (batch,) = batches.micro_batches(step)
        valid = batch.labels != -100
        ids = batch.input_ids.flatten()
        ids[batch.masked_positions[valid]] = batch.labels[valid]
        row = int(batches.row_ids(step)[0])
        expected: list[int] = []
        for segment in range(*rows.row_offsets[row : row + 2].tolist()):
            tokens = corpus.read(
                shard=int(rows.segment_shard[segment]),
                start=int(rows.segment_start[segment]),
                length=int(rows.segment_length[segment]),
            )
            expected += [vocabulary.cls_id, *tokens.tolist(), vocabulary.sep_id]
        assert ids.tolist() == expected + [0] * (TOKENS - len(expected))


def test_a_full_row_fits_the_capacity(make_batches: MakeBatches) -> None:
    for probability in (0.001, 0.15, 0.5, 0.99):
        batches = make_batches(micro=3, probability=probability)
        for step in range(8):
            assert sum(1 for _ in batches.micro_batches(step)) == batches.micro_steps


def test_any_step_can_be_taken_first(make_batches: MakeBatches) -> None:
    batches = make_batches()
    in_order = [[real_rows(b) for b in batches.micro_batches(step)] for step in range(6)]
    fresh = make_batches()
    assert [[real_rows(b) for b in fresh.micro_batches(step)] for step in (5, 2)] == [
        in_order[5],
        in_order[2],
    ]


def test_evaluation_is_the_first_rows_always_masked(
    make_batches: MakeBatches, vocabulary: Vocabulary
) -> None:
    batches = make_batches(batch=4, evaluation=True)
    assert batches.row_ids(0).tolist() == batches.row_ids(9).tolist() == [0, 1, 2, 3]
    assert batches.epoch(9) == 0
    for batch in batches.micro_batches(0):
        valid = batch.labels != -100
        assert (
            batch.input_ids.flatten()[batch.masked_positions[valid]] == vocabulary.mask_id
        ).all()
    # Fewer rows than asked for, and fewer than ranks: every rank still runs one micro-step.
    rows = batches.rows.num_rows
    many = [make_batches(rank=r, world_size=99, batch=1000, evaluation=True) for r in range(99)]
    assert {len(list(item.micro_batches(0))) for item in many} == {1}
    assert many[0].global_batch_rows == rows
    assert sum(len(real_rows(b)) for item in many for b in item.micro_batches(0)) == rows


def test_batch_smaller_than_the_world_is_refused(make_batches: MakeBatches) -> None:
    with pytest.raises(
        BadInput, match=r"train\.global_batch_rows is 2 and launch\.num_workers is 3"
    ):
        make_batches(batch=2, world_size=3)


def test_changed_tokens_are_noticed(make_batches: MakeBatches, vocabulary: Vocabulary) -> None:
    batches = make_batches(batch=1, micro=1)
    row = int(batches.row_ids(0)[0])
    segment = int(batches.rows.row_offsets[row])
    tokens = batches.corpus.shards[batches.rows.segment_shard[segment]].tokens
    tokens[batches.rows.segment_start[segment] + 1] = vocabulary.unk_id
    tokens[batches.rows.segment_start[segment] + 2] = vocabulary.unk_id
    with pytest.raises(BadInput, match="changed after `sparsebert prepare`"):
        list(batches.micro_batches(0))


def test_real_corpora_through_the_builders(
    general: Prepared, pubmed: Prepared, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config = DataConfig(shards=[general.report.output, pubmed.report.output])
    for _ in range(2):  # computed, then from the cache
        batches = build_training_batches(
            config,
            vocabulary=vocabulary,
            seed=1,
            global_batch_rows=12,
            micro_batch_rows=2,
            rank=1,
            world_size=2,
            cache_dir=tmp_path,
        )
        assert batches.micro_steps == 3 and batches.rows.efficiency > 0.97
        assert sum(b.input_ids.numel() for b in batches.micro_batches(100)) == 6 * 512
    validation = build_validation_batches(
        config,
        [pubmed.report.validation_output],
        vocabulary=vocabulary,
        rows=8,
        micro_batch_rows=8,
        rank=0,
        world_size=1,
    )
    (batch,) = validation.micro_batches(0)
    assert int((batch.labels != -100).sum()) == validation.global_masked_tokens(0) > 500


def test_data_config() -> None:
    config = DataConfig.model_validate({"shards": "data/general"})
    assert config.shards == [Path("data/general")]
    assert (config.max_seq_len, config.row_tokens, config.mlm_probability) == (128, 512, 0.15)
    bad: list[dict[str, object]] = [
        {"shards": []},
        {"shards": "a", "max_seq_len": 2},
        {"shards": "a", "max_seq_len": 513, "row_tokens": 1024},
        {"shards": "a", "mlm_probability": 0.0},
        {"shards": "a", "mlm_probability": 1.0},
        {"shards": "a", "sequence_length": 128},
    ]
    for wrong in bad:
        with pytest.raises(ValidationError):
            DataConfig.model_validate(wrong)
    with pytest.raises(
        ValidationError, match=r"data\.row_tokens is 64: .*data\.max_seq_len \(128\)"
    ):
        DataConfig(shards=[Path("a")], row_tokens=64)


def test_open_corpus_is_mapped_and_not_copied(general: Prepared, vocabulary: Vocabulary) -> None:
    corpus = open_corpus([general.report.output], vocabulary=vocabulary)
    assert np.shares_memory(corpus.read(shard=0, start=5, length=9), corpus.shards[0].tokens)
