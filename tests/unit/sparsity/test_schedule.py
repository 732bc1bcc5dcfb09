"""The schedule at every step that it visits, against formulas written here a second time."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparsity.schedule import SparsityConfig, compute_pruned_count, compute_target, is_due

# (start, end, interval): ends on the grid, off it, an interval beyond the end, no room at all.
SPANS = [(0, 100, 10), (30, 200, 10), (3, 20, 7), (5, 6, 100), (1, 11, 1), (4, 4, 3), (0, 0, 1)]


def float_target(config: SparsityConfig, step: int) -> float:
    """Zhu and Gupta's formula in floats, and 0 before the start."""
    start, end = config.prune_start_step, config.prune_end_step
    assert end is not None
    if step < start:
        return 0.0 if start != end else config.final_sparsity * (step >= end)
    done = 1.0 if start == end else min((step - start) / (end - start), 1.0)
    power = {"cubic": 3, "linear": 1}[config.schedule]
    return (
        config.final_sparsity
        + (config.initial_sparsity - config.final_sparsity) * (1 - done) ** power
    )


@pytest.mark.parametrize("schedule", ["cubic", "linear"])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("sparsities", [(0.0, 0.9), (0.2, 0.7), (0.5, 0.5), (0.0, 0.0)])
def test_every_step(schedule: str, span: tuple[int, ...], sparsities: tuple[float, float]) -> None:
    start, end, interval = span
    config = SparsityConfig.model_validate(
        {
            "schedule": schedule,
            "initial_sparsity": sparsities[0],
            "final_sparsity": sparsities[1],
            "prune_start_step": start,
            "prune_end_step": end,
            "prune_interval_steps": interval,
        }
    )
    due = [step for step in range(end + 50) if is_due(config, step)]
    assert due == sorted({*range(start, end + 1, interval), end})
    targets = [compute_target(config, step) for step in range(end + 50)]
    for step, target in enumerate(targets):
        # 1e-12: a few roundings of binary floats; the target itself is exact.
        assert abs(float(target) - float_target(config, step)) < 1e-12, step
    assert targets == sorted(targets)
    assert set(targets[end:]) == {Fraction(str(sparsities[1]))}
    assert targets[:start] == [0] * start
    if start < end:
        assert targets[start] == Fraction(str(sparsities[0]))


def test_exact_fractions() -> None:
    cubic = SparsityConfig(initial_sparsity=0.1, prune_start_step=2, prune_end_step=6)
    assert [compute_target(cubic, step) for step in range(8)] == [
        0,
        0,
        Fraction(1, 10),
        Fraction(9, 10) - Fraction(8, 10) * Fraction(27, 64),
        Fraction(9, 10) - Fraction(8, 10) * Fraction(1, 8),
        Fraction(9, 10) - Fraction(8, 10) * Fraction(1, 64),
        Fraction(9, 10),
        Fraction(9, 10),
    ]
    linear = cubic.model_copy(update={"schedule": "linear"})
    assert [compute_target(linear, step) for step in (2, 3, 4, 5, 6)] == [
        Fraction(n, 10) for n in (1, 3, 5, 7, 9)
    ]


def test_the_decimal_that_was_written_counts() -> None:
    """0.7 as a binary float is below 7/10: half of 7 must still be rounded up, to 4."""
    config = SparsityConfig(final_sparsity=0.7, prune_end_step=0)
    target = compute_target(config, 0)
    assert target == Fraction(7, 10)
    assert [compute_pruned_count(target, n) for n in (10, 5)] == [7, 4]


def test_one_shot_prunes_at_its_step_only() -> None:
    config = SparsityConfig(schedule="one_shot", final_sparsity=0.6, prune_start_step=7)
    assert [step for step in range(300) if is_due(config, step)] == [7]
    targets = [compute_target(config, step) for step in range(20)]
    assert targets == [0] * 7 + [Fraction(3, 5)] * 13


def test_frozen_never_updates() -> None:
    config = SparsityConfig(schedule="frozen", prune_start_step=0)
    assert config.last_update_step is None
    assert not any(is_due(config, step) for step in range(300))


@settings(deadline=None)
@given(
    numel=st.integers(0, 10**12),
    numerator=st.integers(0, 10**6),
    denominator=st.integers(1, 10**6),
)
def test_counts_round_half_up(numel: int, numerator: int, denominator: int) -> None:
    target = Fraction(min(numerator, denominator), denominator)
    count = compute_pruned_count(target, numel)
    assert 0 <= count <= numel
    assert Fraction(-1, 2) < count - target * numel <= Fraction(1, 2)


def test_counts_at_the_ends() -> None:
    assert [compute_pruned_count(Fraction(1, 2), n) for n in range(6)] == [0, 1, 1, 2, 2, 3]
    for numel in (0, 1, 84_934_656, 10**11):
        assert compute_pruned_count(Fraction(0), numel) == 0
        assert compute_pruned_count(Fraction(1), numel) == numel
    # A float product is off by one here: 0.35 * 90 is 31.499999999999996.
    assert compute_pruned_count(Fraction("0.35"), 90) == 32


@settings(deadline=None)
@given(
    final=st.decimals(0, "0.999", places=3),
    numel=st.integers(1, 10**11),
    end=st.integers(1, 400),
    schedule=st.sampled_from(["cubic", "linear"]),
)
def test_the_count_never_falls(final: Any, numel: int, end: int, schedule: str) -> None:
    config = SparsityConfig.model_validate(
        {"schedule": schedule, "final_sparsity": float(final), "prune_end_step": end}
    )
    counts = [compute_pruned_count(compute_target(config, step), numel) for step in range(end + 2)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == compute_pruned_count(Fraction(str(float(final))), numel)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prune_end_step": None}, "sparsity.prune_end_step"),
        ({"prune_end_step": 3, "prune_start_step": 4}, "sparsity.prune_start_step"),
        ({"initial_sparsity": 0.8, "final_sparsity": 0.5}, "sparsity.initial_sparsity"),
        ({"final_sparsity": 1.0}, "final_sparsity"),
        ({"final_sparsity": -0.1}, "final_sparsity"),
        ({"final_sparsity": float("nan")}, "final_sparsity"),
        ({"initial_sparsity": 1.5}, "initial_sparsity"),
        ({"prune_start_step": -1}, "prune_start_step"),
        ({"prune_interval_steps": 0}, "prune_interval_steps"),
        ({"schedule": "quadratic"}, "schedule"),
        ({"scope": "layer"}, "scope"),
        ({"finalsparsity": 0.5}, "finalsparsity"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], named: str) -> None:
    whole = {"prune_end_step": 10, **fields}
    with pytest.raises(ValidationError) as caught:
        SparsityConfig.model_validate(whole)
    problem = caught.value.errors()[0]
    assert named in ".".join(map(str, problem["loc"])) + " " + problem["msg"]
