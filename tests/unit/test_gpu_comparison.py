"""A GPU's run that is not the CPU's is told: other losses, other masks."""

from typing import Any

import pytest

from tests.gpu.comparison import BOUNDS, SETUPS, Setup, compare

LOSSES = [5.0, 4.0, 3.0, 2.0]
DIGESTS = {"0": "aa", "50": "bb", "end": "bb"}


def run_of(**changes: Any) -> dict[str, Any]:
    return {"losses": LOSSES, "digests": DIGESTS, "pruned": 7, **changes}


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_equal_runs(setup: Setup) -> None:
    assert compare(setup, run_of(), run_of()) == 0
    bound = BOUNDS[setup.precision]
    within = [loss * (1 + 0.9 * bound) for loss in LOSSES]
    assert compare(setup, run_of(losses=within), run_of()) == pytest.approx(0.9 * bound)


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_another_loss_count_or_mask_is_told(setup: Setup) -> None:
    one_off = [*LOSSES[:3], LOSSES[3] * (1 + 1.1 * BOUNDS[setup.precision])]
    others = [run_of(losses=one_off), run_of(pruned=8), run_of(digests=DIGESTS | {"0": "ab"})]
    others.append(run_of(losses=[float("nan")] * 4))
    if setup.schedule == "one_shot":  # later masks follow weights that rounding moves
        others.append(run_of(digests=DIGESTS | {"end": "ab"}))
    for other in others:
        with pytest.raises(AssertionError, match=setup.name):
            compare(setup, other, run_of())


def test_every_stage_and_both_precisions_are_compared() -> None:
    assert {setup.stage for setup in SETUPS} == {0, 1, 2, 3}
    assert {(s.precision, s.schedule) for s in SETUPS} == {
        (precision, schedule)
        for precision in ("fp32", "bf16")
        for schedule in ("one_shot", "cubic")
    }
