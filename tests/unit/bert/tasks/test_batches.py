"""Batches do not depend on the number of ranks; padding has no target and is a segment apart."""

from collections import Counter

import numpy as np
import pytest
import torch

from bert.attention import check_boundaries
from bert.tasks.batches import TaskBatches
from bert.tasks.encoding import Row

LENGTHS = (3, 9, 5, 16, 4, 7, 11)


def rows(kind: str = "class") -> list[Row]:
    made = []
    for i, length in enumerate(LENGTHS):
        ids = np.arange(length) + 10 * i + 1
        target = {
            "class": np.array(i, np.int64),
            "token": np.arange(length) - 100 * (np.arange(length) % 2),
            "span": np.array([1, 2], np.int64),
            "sets": np.array([0, 1, i], np.float32),
        }[kind]
        made.append(Row(ids, np.zeros(length, np.int64), target, i + 1, i))
    return made


def batches(rank: int, world_size: int, *, kind: str = "class", **fields: object) -> TaskBatches:
    settings = {"seed": 3, "global_batch_rows": 4, "micro_batch_rows": 2, "evaluation": False}
    return TaskBatches(
        rows(kind), pad_id=0, rank=rank, world_size=world_size, **{**settings, **fields}
    )


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_one_batch(world_size: int, evaluation: bool) -> None:
    alone = batches(0, 1, evaluation=evaluation)
    for step in (0, 1, 5):
        parts = [batches(r, world_size, evaluation=evaluation) for r in range(world_size)]
        assert {p.micro_steps for p in parts} == {
            sum(1 for _ in p.micro_batches(step)) for p in parts
        }
        found = [i for p in parts for m in p.micro_batches(step) for i in m.rows]
        assert sorted(found) == sorted(alone.row_ids(step).tolist())
        for part in parts:
            rows = [i for micro in part.micro_batches(step) for i in micro.rows]
            assert [LENGTHS[i] for i in rows] == sorted(LENGTHS[i] for i in rows)
        assert {p.loss_terms(step) for p in parts} == {sum(i + 1 for i in found)}
        assert {p.global_tokens(step) for p in parts} == {sum(LENGTHS[i] for i in found)}


def test_an_epoch_has_every_row_once() -> None:
    made = batches(0, 1)
    ids = [i for step in range(7) for i in made.row_ids(step)]  # 28 rows are four epochs
    assert Counter(ids) == dict.fromkeys(range(7), 4)
    first, second = ids[:7], ids[7:14]
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert ids != [i for s in range(7) for i in batches(0, 1, seed=4).row_ids(s)]


@pytest.mark.parametrize("kind", ["class", "token", "span", "sets"])
def test_a_micro_batch_holds_its_rows(kind: str) -> None:
    made = batches(2, 3, kind=kind, global_batch_rows=5, micro_batch_rows=3)
    (micro,) = made.micro_batches(0)
    count, width = micro.input_ids.shape
    assert count == 3 and width % 8 == 0 and len(micro.rows) == 2
    check_boundaries(micro.cu_seqlens, max_seqlen=micro.max_seqlen, rows=3, row_tokens=width)
    for at, row_id in enumerate(micro.rows):
        row, length = made.rows[row_id], LENGTHS[row_id]
        assert micro.input_ids[at].tolist() == row.input_ids.tolist() + [0] * (width - length)
        assert micro.position_ids[at, :length].tolist() == list(range(length))
        assert (at * width + length) in micro.cu_seqlens.tolist()
        target = micro.targets[at]
        if kind == "token":
            assert (target[length:] == -100).all()
            target = target[:length]
        assert torch.equal(target, torch.from_numpy(np.asarray(row.target)))
    empty = micro.targets[2]
    assert (empty.isnan() if kind == "sets" else empty == -100).all()
    assert set(micro.to(torch.device("cpu"))) == {
        "input_ids", "token_type_ids", "position_ids", "cu_seqlens", "max_seqlen", "targets",
    }  # fmt: skip
