"""What a start chooses, in a group of one; tests/multiprocess has whole runs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from distributed.checkpoint.fencing import Superseded, check_claim
from distributed.checkpoint.reading import list_steps
from distributed.errors import BadInput, Unrecoverable
from distributed.world import Topology
from tests.unit.conftest import damage
from training.attempt import Attempt, agree_on_attempt
from training.folder import RunFolder

MakeRun = Callable[..., RunFolder]


@pytest.fixture(scope="module", autouse=True)
def _group_of_one() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def begin(folder: RunFolder, *, next_batch: int | None = None, most: int = 2) -> Attempt:
    here = Topology(0, 1, 0, torch.device("cpu"))
    return agree_on_attempt(folder, here, next_batch=next_batch, most_returns=most)


def log_steps(folder: RunFolder, *steps: int) -> None:
    folder.metrics_file.write_text("".join(f'{{"step": {step}}}\n' for step in steps))


def logged(folder: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in folder.metrics_file.read_text().splitlines()]


def test_a_new_run_begins_at_the_beginning(make_run: MakeRun) -> None:
    attempt = begin(make_run())
    assert attempt.checkpoint is None and attempt.batch_offset is None


def test_the_newest_good_checkpoint_is_taken_and_later_traces_go(make_run: MakeRun) -> None:
    run = make_run(10, 20)
    log_steps(run, 10, 20, 21, 22)
    damage(run.checkpoints / "step-00000020")
    attempt = begin(run)
    assert attempt.checkpoint is not None and attempt.checkpoint.step == 10
    assert logged(run) == [10]
    assert list_steps(run.checkpoints) == [10]
    event = json.loads(run.events_file.read_text())
    assert event["kind"] == "damage" and "step-00000020" in event["message"]


def test_each_start_shuts_out_the_one_before(make_run: MakeRun) -> None:
    run = make_run(10)
    first, second = begin(run), begin(run)
    check_claim(run.checkpoints, second.token)
    with pytest.raises(Superseded):
        check_claim(run.checkpoints, first.token)


def test_where_none_is_good_nothing_is_begun_anew(make_run: MakeRun) -> None:
    run = make_run(10)
    damage(run.checkpoints / "step-00000010")
    log_steps(run, 10)
    with pytest.raises(BadInput, match="none can be used"):
        begin(run)
    assert logged(run) == [10] and list_steps(run.checkpoints) == [10]


def test_a_folder_that_cannot_be_written(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpoints.rmdir()
    run.checkpoints.write_text("a file")
    with pytest.raises(BadInput, match="cannot be used"):
        begin(run)


def test_a_return_is_remembered_until_its_checkpoint_is_passed(make_run: MakeRun) -> None:
    run = make_run(10)
    assert begin(run, next_batch=17).batch_offset == 7
    assert begin(run).batch_offset == 7, "a restart before the next checkpoint"
    assert begin(run, next_batch=21).batch_offset == 11
    with pytest.raises(Unrecoverable, match="3 times"):
        begin(run, next_batch=30)
    (run.checkpoints / "attempt.json").unlink()  # the fixture writes as nobody
    make_run(20)
    assert begin(run).batch_offset is None, "the later checkpoint has it in its own state"


@pytest.mark.parametrize("content", ["{", "3", '[{"step": 1}]', '[{"step": "x", "next_batch": 2}]'])
def test_a_damaged_list_of_returns_is_refused(make_run: MakeRun, content: str) -> None:
    run = make_run(10)
    run.passed_over_file.write_text(content)
    with pytest.raises(BadInput, match=r"passed-over\.json is damaged"):
        begin(run)


def test_the_folder_of_a_run_is_left_whole(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10)
    before = sorted(p.name for p in (run.checkpoints / "step-00000010").iterdir())
    begin(run)
    assert sorted(p.name for p in (run.checkpoints / "step-00000010").iterdir()) == before
