from pathlib import Path

import pytest

from distributed.checkpoint.reading import Checkpoint, list_steps
from distributed.checkpoint.retention import choose_kept, remove_old, set_aside
from distributed.config import CheckpointConfig
from tests.unit.distributed.conftest import write

STEPS = [10, 20, 30, 40, 50, 60]
LOSSES = {10: 5.0, 20: 3.0, 30: 3.0, 40: 4.0, 50: None}


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({"keep_last": 1}, {60}),
        ({"keep_last": 9}, {*STEPS}),
        ({"keep_last": 2, "keep_every_steps": 30}, {30, 50, 60}),
        ({"keep_last": 1, "keep_best": 1}, {20, 60}),  # the earlier of two equal ones
        ({"keep_last": 1, "keep_best": 3}, {20, 30, 40, 60}),
        ({"keep_last": 1, "keep_best": 9}, {10, 20, 30, 40, 60}),  # what was never measured goes
        ({"keep_last": 1, "keep_best": 1, "keep_every_steps": 40}, {20, 40, 60}),
    ],
)
def test_each_rule_adds_to_what_stays(rules: dict[str, int], kept: set[int]) -> None:
    assert choose_kept(STEPS, CheckpointConfig.model_validate(rules), LOSSES) == kept


def test_the_rest_is_removed_and_what_stays_is_whole(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step=step, world_size=1)
    remove_old(
        tmp_path, newest=30, config=CheckpointConfig(keep_last=1, keep_best=1), losses={10: 1.0}
    )
    assert list_steps(tmp_path) == [10, 30]
    Checkpoint(tmp_path / "step-00000010"), Checkpoint(tmp_path / "step-00000030")


def test_refused_ones_wait_for_their_replacement(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path, step=step, world_size=1)
    (refused,) = set_aside(tmp_path, newer_than=10)
    assert list_steps(tmp_path) == [10] and refused.is_dir()
    write(tmp_path, step=20, world_size=1)
    remove_old(tmp_path, newest=20, config=CheckpointConfig(keep_last=3), losses={})
    assert list_steps(tmp_path) == [10, 20] and not refused.exists()
