"""The loop's pure functions; whole runs are in tests/multiprocess/test_run.py."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.config import TrainConfig
from training.loop import compute_learning_rate, seed_dropout
from training.state import TrainState

PEAK = 2e-3


def config(**fields: Any) -> TrainConfig:
    whole = {
        "total_steps": 100,
        "global_batch_rows": 8,
        "micro_batch_rows": 2,
        "learning_rate": PEAK,
        "warmup_steps": 10,
        **fields,
    }
    return TrainConfig.model_validate(whole)


def rates(**fields: Any) -> list[float]:
    whole = config(**fields)
    return [compute_learning_rate(whole, step) for step in range(whole.total_steps)]


# The learning rate.


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_ends_at_the_peak(schedule: str) -> None:
    got = rates(lr_schedule=schedule)
    # Step 0 already moves: a tenth of the peak in ten steps of warm-up, not 0.
    assert got[:10] == pytest.approx([PEAK * n / 10 for n in range(1, 11)], rel=1e-15)
    assert got[9] == got[10] == max(got) == PEAK


def test_linear_decay() -> None:
    got = rates()
    assert got[10:] == pytest.approx([PEAK * n / 90 for n in range(90, 0, -1)], rel=1e-12)
    # The last update still moves, and the step after it would not.
    assert got[-1] == pytest.approx(PEAK / 90, rel=1e-12)
    assert compute_learning_rate(config(), 100) == 0.0


def test_cosine_decay() -> None:
    got = rates(lr_schedule="cosine")
    want = [PEAK * (math.cos((step - 10) / 90 * math.pi) + 1) / 2 for step in range(10, 100)]
    assert got[10:] == pytest.approx(want, rel=1e-12)
    assert got[55] == pytest.approx(PEAK / 2, rel=1e-12)  # half-way
    assert 0 < got[-1] < PEAK * 4e-4
    assert compute_learning_rate(config(lr_schedule="cosine"), 100) == 0.0


def test_constant() -> None:
    assert rates(lr_schedule="constant")[9:] == [PEAK] * 91


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_no_warm_up_and_nothing_else(schedule: str) -> None:
    assert rates(lr_schedule=schedule, warmup_steps=0)[0] == PEAK
    only = rates(lr_schedule=schedule, warmup_steps=4, total_steps=4)
    assert only == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK], rel=1e-15)
    assert rates(lr_schedule=schedule, warmup_steps=0, total_steps=1) == [PEAK]


@settings(deadline=None)
@given(
    total=st.integers(1, 300),
    warmup=st.integers(0, 300),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_rises_to_the_peak_then_never_rises(total: int, warmup: int, schedule: str) -> None:
    warmup = min(warmup, total)
    got = rates(total_steps=total, warmup_steps=warmup, lr_schedule=schedule)
    top = max(warmup - 1, 0)
    assert got[top] == PEAK
    assert got[: top + 1] == sorted(got[: top + 1])
    assert got[top:] == sorted(got[top:], reverse=True)
    assert all(0 < rate <= PEAK for rate in got)


# Configuration.


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"warmup_steps": 101}, "train.warmup_steps"),
        ({"betas": (0.9, 1.0)}, "train.betas"),
        ({"betas": (-0.1, 0.9)}, "train.betas"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"total_steps": 0}, "total_steps"),
        ({"global_batch_rows": 0}, "global_batch_rows"),
        ({"micro_batch_rows": 0}, "micro_batch_rows"),
        ({"hidden_dropout": 1.0}, "hidden_dropout"),
        ({"attention_dropout": -0.1}, "attention_dropout"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"log_interval_steps": 0}, "log_interval_steps"),
        ({"precision": "fp16"}, "precision"),
        ({"lr_schedule": "step"}, "lr_schedule"),
        ({"learning_rte": 1e-3}, "learning_rte"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**fields)
    problem = caught.value.errors()[0]
    assert named in ".".join(map(str, problem["loc"])) + " " + problem["msg"]


# State.


def test_a_step_is_counted_with_its_tokens() -> None:
    state = TrainState().after_step(tokens=300, applied=True).after_step(tokens=4, applied=True)
    assert state == TrainState(step=2, tokens_seen=304, skipped_steps=0)


def test_a_skipped_step_consumes_its_number_and_rows() -> None:
    state = TrainState(step=5, tokens_seen=10).after_step(tokens=3, applied=False)
    want = TrainState(step=6, tokens_seen=13, skipped_steps=1, skipped_in_a_row=1)
    assert state == want
    again = state.after_step(tokens=0, applied=False)
    assert (again.skipped_steps, again.skipped_in_a_row) == (2, 2)
    assert again.after_step(tokens=0, applied=True).skipped_in_a_row == 0


def test_a_return_moves_the_batch_and_not_the_step() -> None:
    state = TrainState(step=5, batch_offset=3)
    assert state.batch == 8
    later = state.after_step(tokens=0, applied=True)
    assert (later.step, later.batch) == (6, 9)


def test_state_survives_json() -> None:
    state = TrainState(step=5, tokens_seen=10**13, skipped_steps=2)
    assert TrainState(**state.to_dict()) == state


# Dropout.


def drawn(seed: int, step: int, micro_step: int, rank: int) -> tuple[float, ...]:
    seed_dropout(seed, step, micro_step, rank)
    return tuple(torch.rand(4).tolist())


def test_dropout_depends_on_where_we_are_and_on_nothing_else() -> None:
    first = drawn(1, 2, 3, 4)
    torch.rand(17)
    assert drawn(1, 2, 3, 4) == first
    torch.manual_seed(99)
    assert drawn(1, 2, 3, 4) == first


def test_dropout_differs_everywhere() -> None:
    """Seeds, steps, micro-steps and ranks that a sum or a product would confuse."""
    grid = list(itertools.product((0, 1, 2, 2**62), (0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3)))
    assert len({drawn(*place) for place in grid}) == len(grid)


def test_dropout_masks_of_two_ranks_are_unrelated() -> None:
    masks = []
    for rank in range(2):
        seed_dropout(1, 0, 0, rank)
        masks.append(torch.nn.functional.dropout(torch.ones(10_000), 0.5) != 0)
    # Independent coins agree half the time; 5 standard deviations are 250.
    assert abs(int((masks[0] == masks[1]).sum()) - 5000) < 250
