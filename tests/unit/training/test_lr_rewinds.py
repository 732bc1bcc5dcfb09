"""Learning-rate rewinds: the rate at every step of a run, against its segments drawn by hand."""

from typing import Any

import pytest

from training.config import TrainConfig
from training.loop import compute_learning_rate


def rates(**fields: Any) -> list[float]:
    config = TrainConfig(
        **{"total_steps": 20, "global_batch_rows": 1, "micro_batch_rows": 1, "learning_rate": 1.0,
           "warmup_steps": 2, **fields}
    )  # fmt: skip
    return [compute_learning_rate(config, step) for step in range(config.total_steps)]


def test_each_interval_decays_anew_and_the_last_to_the_end() -> None:
    got = rates(lr_rewind_interval_steps=4, lr_rewind_end_step=12, lr_floor=0.2)

    def segment(length: int) -> list[float]:
        return [1 - 0.8 * i / length for i in range(length)]

    # Steps 2-5, 6-9, then 10-11, cut short by the last rewind at 12.
    want = [0.5, 1.0, *segment(4), *segment(4), *segment(2), *segment(8)]
    assert got == pytest.approx(want)


def test_without_rewinds_nothing_changes() -> None:
    assert rates() == pytest.approx([0.5, 1.0, *(1 - i / 18 for i in range(18))])
    assert rates(lr_floor=0.1)[-1] == pytest.approx(0.1 + 0.9 / 18)
    constant = rates(lr_schedule="constant", lr_rewind_interval_steps=4, lr_rewind_end_step=12)
    assert set(constant[2:]) == {1.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"lr_rewind_interval_steps": 4},
        {"lr_rewind_interval_steps": 4, "lr_rewind_end_step": 20},
        {"lr_rewind_interval_steps": 4, "lr_rewind_end_step": 2},
    ],
)
def test_rewinds_that_make_no_sense(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="lr_rewind_end_step"):
        rates(**fields)
