"""Writing beside training: what is on disk is the moment of the copy, whatever comes after it."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from distributed.checkpoint import background
from distributed.checkpoint.background import CheckpointWriter
from distributed.checkpoint.fencing import claim
from distributed.checkpoint.reading import MASTER, Checkpoint, list_steps
from distributed.world import broadcast_json
from tests.multiprocess import pool
from tests.multiprocess.test_checkpoint import Snapshot, attach, snapshot, train
from tests.multiprocess.toy import toy_engine


class Training:
    """A toy engine with a writer; `faults` are the steps whose write fails on the last rank."""

    def __init__(self, folder: Path, *, stage: int = 2, faults: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.failed: list[tuple[int, str]] = []
        self.committed: list[int] = []
        self.engine = toy_engine(stage=stage)
        self.sparsity = attach(self.engine)
        self.step = 0
        is_first = dist.get_rank() == 0
        self.is_last = dist.get_rank() == dist.get_world_size() - 1
        self.writer = CheckpointWriter(
            folder,
            attempt=broadcast_json(claim(folder) if is_first else None),
            max_failures=2,
            on_commit=self.committed.append,
            on_failure=lambda step, reason: self.failed.append((step, reason)),
        )
        self.gate = threading.Event()
        self.gate.set()
        self.faults = list(faults)
        self.original = background.write_snapshot
        background.write_snapshot = self._write  # type: ignore[assignment]

    def _write(self, folder: Path, part: Any, **options: Any) -> None:
        self.gate.wait(60)
        if self.is_last and part.step in self.faults:
            self.faults.remove(part.step)
            raise OSError(errno.ENOSPC, "No space left on device")
        self.original(folder, part, **options)

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: Any) -> None:
        self.writer.close()
        background.write_snapshot = self.original

    def run(self, steps: int) -> None:
        train(self.engine, self.sparsity, self.step, self.step + steps)
        self.step += steps

    def save(self) -> None:
        self.writer.save(
            self.engine.partition,
            step=self.step,
            packed_masks=self.sparsity.packed_masks(),
            state={"digest": self.sparsity.state.digest},
        )


def save_and_go_on(folder: Path, stage: int) -> tuple[Snapshot, list[int], list[int]]:
    """The write waits until training has changed every weight."""
    with Training(folder, stage=stage) as training:
        training.run(3)
        then = snapshot(training.engine, training.sparsity)
        training.gate.clear()
        training.save()
        training.run(2)
        before = list_steps(folder)
        training.gate.set()
        training.writer.finish()
        return then, before, list_steps(folder)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_checkpoint_is_of_the_moment_of_the_copy(world_size: int, tmp_path: Path) -> None:
    for stage in (0, 1, 2, 3):
        folder = tmp_path / str(stage)
        answers = pool.run(world_size, save_and_go_on, folder, stage)
        assert [answer[1:] for answer in answers] == [([], [3])] * world_size
        then = answers[0][0]
        checkpoint = Checkpoint(folder / "step-00000003")
        for kind in (MASTER, "exp_avg", "exp_avg_sq"):
            read = checkpoint.reader(kind)
            for name, numel in checkpoint.numels.items():
                want = then[kind][name].float()
                assert read(name, 0, numel).equal(want), (stage, kind, name)


def fail_once(folder: Path) -> dict[str, Any]:
    """The second of three writes fails on the last rank."""
    with Training(folder, faults=(2,)) as training:
        steps = []
        for _ in range(3):
            training.run(1)
            training.save()
            training.writer.settle()
            steps.append(list_steps(folder))
        training.writer.finish()
        return {"steps": steps, "failed": training.failed, "committed": training.committed}


def test_a_failed_write_costs_its_checkpoint_and_no_more(tmp_path: Path) -> None:
    answers = pool.run(3, fail_once, tmp_path)
    for answer in answers:
        assert answer["steps"] == [[1], [1], [1, 3]]
    assert answers[0]["committed"] == [1, 3]
    assert answers[2]["failed"] == [(2, "[Errno 28] No space left on device")]
    assert answers[0]["failed"] == answers[1]["failed"] == []
    Checkpoint(tmp_path / "step-00000001"), Checkpoint(tmp_path / "step-00000003")
    assert not list(tmp_path.glob(".step-*")), "what a failed write left is removed"


def fail_twice(folder: Path) -> str:
    with Training(folder, faults=(2, 3)) as training:
        for _ in range(3):
            training.run(1)
            training.save()
        try:
            training.writer.finish()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing raised"


def test_failures_in_a_row_end_training_on_all_ranks(tmp_path: Path) -> None:
    first, last = pool.run(2, fail_twice, tmp_path)
    assert first == "RuntimeError: another rank could not write the checkpoint of step 3"
    assert last.startswith(
        "CheckpointNotWritten: the checkpoint of step 3 could not be written "
        "([Errno 28] No space left on device), 2 failure(s) in a row"
    )
    assert str(tmp_path) in last
    assert list_steps(tmp_path) == [1]


def fail_at_the_end(folder: Path) -> list[int]:
    with Training(folder, faults=(1,)) as training:
        training.run(1)
        training.save()
        training.writer.finish()
        return list_steps(folder)


def test_the_last_write_is_tried_again(tmp_path: Path) -> None:
    assert pool.run(2, fail_at_the_end, tmp_path) == [[1], [1]]
    Checkpoint(tmp_path / "step-00000001")


def be_superseded(folder: Path) -> tuple[str, list[int]]:
    with Training(folder) as training:
        training.run(1)
        training.save()
        training.writer.settle()
        training.gate.clear()
        training.run(1)
        training.save()
        if dist.get_rank() == 0:
            claim(folder)
        dist.barrier()
        training.gate.set()
        try:
            training.writer.finish()
        except Exception as error:
            return type(error).__name__, list_steps(folder)
        return "nothing raised", []


def test_a_group_that_was_replaced_leaves(tmp_path: Path) -> None:
    assert pool.run(2, be_superseded, tmp_path) == [("Superseded", [1])] * 2


def one_in_flight(folder: Path) -> tuple[int, bool]:
    with Training(folder) as training:
        threads = 0
        for _ in range(4):
            training.run(1)
            training.save()
            alive = [t for t in threading.enumerate() if t.name == "checkpoint"]
            threads = max(threads, len(alive))
        training.writer.finish()
        figures = training.writer.figures()
        return threads, len(figures) == 2 and all(seconds > 0 for seconds in figures.values())


def test_one_write_is_in_flight_at_most(tmp_path: Path) -> None:
    assert all(n <= 1 and told for n, told in pool.run(2, one_in_flight, tmp_path))
    assert list_steps(tmp_path) == [1, 2, 3, 4]
