"""The project's own collectives on 1, 2 and 3 processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bert.architecture import SHORT_TITLES
from distributed.world import AgreedFlag, Topology, all_reduce_max, all_reduce_sum, broadcast_json
from tests.multiprocess import pool
from training.metrics import Metrics, MetricsFiles

pytestmark = pytest.mark.parametrize("world_size", [1, 2, 3])

DOCUMENT = {
    "path": None,
    "text": '\u00e4 \u20ac \U0001f600 \x00 "quoted"',
    "nested": [1, -(2**70), 0.1, True, {"a": []}],
    "long": "x" * 100_000,
}


def broadcast(values: list[Any]) -> list[Any]:
    """What arrives of each; ranks other than 0 offer something else, even what JSON cannot hold."""
    rank = dist.get_rank()
    return [broadcast_json(value if rank == 0 else {rank}) for value in values]


def test_broadcast_json(world_size: int) -> None:
    values = [DOCUMENT, None, 0, "", [], {}, False, "\u20ac"]
    assert pool.run(world_size, broadcast, values) == [values] * world_size


def agree(schedule: list[list[int]]) -> list[bool]:
    """At step s the ranks in schedule[s] raise the flag; the answers at each step."""
    flag = AgreedFlag()
    return [flag.agreed(dist.get_rank() in raising) for raising in schedule]


def test_a_flag_is_agreed_one_step_later_by_all(world_size: int) -> None:
    for raising in range(world_size):
        for at in range(3):
            schedule = [[raising] if step == at else [] for step in range(5)]
            want = [step == at + 1 for step in range(5)]
            assert pool.run(world_size, agree, schedule) == [want] * world_size


def test_a_flag_that_all_raise_or_none(world_size: int) -> None:
    everyone = list(range(world_size))
    assert pool.run(world_size, agree, [everyone] * 3) == [[False, True, True]] * world_size
    assert pool.run(world_size, agree, [[]] * 3) == [[False] * 3] * world_size


def two_flags() -> tuple[list[bool], list[bool]]:
    """Each flag has its own answer, with other collectives in between."""
    first, second = AgreedFlag(), AgreedFlag()
    answers: tuple[list[bool], list[bool]] = ([], [])
    for step in range(3):
        answers[0].append(first.agreed(step == 0))
        all_reduce_sum(torch.ones(1))
        answers[1].append(second.agreed(step == 1))
    return answers


def test_flags_do_not_mix(world_size: int) -> None:
    want = ([False, True, False], [False, False, True])
    assert pool.run(world_size, two_flags) == [want] * world_size


def sums(shape: tuple[int, ...]) -> dict[str, Any]:
    rank = dist.get_rank()
    offered = torch.arange(torch.Size(shape).numel()).view(shape) + 1000 * rank
    total = all_reduce_sum(offered)
    return {
        "total": total.tolist(),
        "dtype": str(total.dtype),
        "untouched": offered.flatten()[:1].tolist() == [1000 * rank] * min(offered.numel(), 1),
        "largest": all_reduce_max(offered).tolist(),
    }


@pytest.mark.parametrize("shape", [(7,), (2, 3), (1,), ()])
def test_sums_and_maxima_of_any_shape(world_size: int, shape: tuple[int, ...]) -> None:
    grid = torch.arange(torch.Size(shape).numel()).view(shape)
    want = {
        "total": (grid * world_size + 1000 * sum(range(world_size))).tolist(),
        "dtype": "torch.int64",
        "untouched": True,
        "largest": (grid + 1000 * (world_size - 1)).tolist(),
    }
    assert pool.run(world_size, sums, shape) == [want] * world_size


LARGE = [2**62 + 12345, -(2**63), 2**63 - 1, 0x9E3779B97F4A7C15 - 2**64, 2**53 + 1]


def sum_large() -> list[int]:
    return all_reduce_sum(torch.tensor(LARGE) + dist.get_rank()).tolist()


def test_int64_sums_wrap_around_and_are_never_floats(world_size: int) -> None:
    """Digests are sums modulo 2^64, and counts beyond 2^53 must not be rounded."""

    def wrap(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    want = [sum(wrap(value + rank) for rank in range(world_size)) for value in LARGE]
    assert pool.run(world_size, sum_large) == [[wrap(value) for value in want]] * world_size


def log_losses(folder: Path) -> dict[str, Any]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    metrics = Metrics(
        MetricsFiles(folder / "metrics.jsonl", folder / "tensorboard"),
        topology=Topology(rank, world_size, rank, torch.device("cpu")),
        start_step=0,
        flops_per_token=1.0,
        config_text="",
        digests={"data": "0123", "first weights": None},
        matrix_titles=SHORT_TITLES,
    )
    for step in (1, 2):
        metrics.begin_step()
        metrics.add("train/mlm_loss", torch.tensor(float(step * 2**rank)))
        metrics.end_step(10)
    metrics.flush(2, None)
    metrics.close()
    return metrics.latest


def test_metrics_add_up_the_ranks_shares(world_size: int, tmp_path: Path) -> None:
    latest = pool.run(world_size, log_losses, tmp_path)
    # Shares of a step are added, steps are averaged: 1.5 * (1 + 2 + 4).
    want = 1.5 * (2**world_size - 1)
    assert [record["train/mlm_loss"] for record in latest] == [want] * world_size
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == latest[0]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
