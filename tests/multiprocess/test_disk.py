"""Disks that fill up, turn read-only or fail in the middle of a write: nothing good is lost.

On a small tmpfs of the test's own, which only root can mount.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bert.pretrain import Pretraining, check_pretraining
from distributed.checkpoint.reading import Checkpoint, find_newest, list_steps
from distributed.errors import BadInput
from tests.multiprocess import pool
from tests.multiprocess.runs import (
    Text,
    column,
    contents,
    differences,
    last_checkpoint,
    prepare_text,
    run_config,
    train,
)
from tests.multiprocess.runs import _train_here as train_here
from training.folder import RunFolder, run_folder_of
from training.session import begin_run, hold_run

TMPFS_BYTES = 32 << 20
LEFT_BYTES = 128 << 10  # what a full disk still has: room for a log line, not for a checkpoint


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        mount("-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def fill(disk: Path) -> None:
    with open(disk / "ballast", "wb") as out:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        out.write(b"\0" * (free - LEFT_BYTES))


def train_and(
    config: Any, plan: dict[str, Any], how: str, disk: Path, at_batch: int
) -> dict[str, Any]:
    """In a pool process: before that batch, rank 0 makes the disk unusable, or a write fail."""
    from bert.corpora.batches import RowBatches
    from distributed.checkpoint import writing

    micro_batches, write_all = RowBatches.micro_batches, writing.write_all

    def act(self: Any, batch: int) -> Any:
        if batch == at_batch and dist.get_rank() == 0 and not self.evaluation:
            if how == "full":
                fill(disk)
            elif how == "read-only":
                # Over the folder: what has open files cannot be made read-only under them.
                mount("-t", "tmpfs", "-o", "ro", "tmpfs", str(disk / "run" / "checkpoints"))
        return micro_batches(self, batch)

    def write_half(descriptor: int, data: memoryview) -> None:
        if how == "error" and len(data) > 4096 and dist.get_rank() == dist.get_world_size() - 1:
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.EIO, "Input/output error")
        write_all(descriptor, data)

    RowBatches.micro_batches = act  # type: ignore[method-assign]
    writing.write_all = write_half
    try:
        return train_here(config, plan, None)
    finally:
        RowBatches.micro_batches = micro_batches  # type: ignore[method-assign]
        writing.write_all = write_all


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("full", "No space left on device"),
        ("read-only", "Read-only file system"),
        ("error", "Input/output error"),
    ],
)
def test_training_ends_with_the_reason_and_goes_on_later(
    text: Text, tmp_path: Path, disk: Path, how: str, words: str
) -> None:
    rules = {"interval_steps": 2, "max_failed_writes": 2}
    whole = train(2, run_config(text, tmp_path, "run", checkpoint=rules))
    config = run_config(text, disk, "run", checkpoint=rules)
    folder = train(2, config, stop_after=1)
    assert list_steps(folder.checkpoints) == [2]

    plan = check_pretraining(config)
    begin_run(Pretraining(config), plan)
    errors = [e["error"] for e in pool.run(2, train_and, config, asdict(plan), how, disk, 3)]
    told = [error for error in errors if error.startswith("CheckpointNotWritten: ")]
    assert told and all(words in error for error in told), errors
    assert all("could not write" in error for error in errors if error not in told), errors
    if how == "read-only":
        subprocess.run(["umount", str(folder.checkpoints)], check=True, timeout=30)
    assert list_steps(folder.checkpoints) == [2]
    Checkpoint(folder.checkpoints / "step-00000002")

    (disk / "ballast").unlink(missing_ok=True)
    train(2, config)
    assert differences(contents(last_checkpoint(folder)), contents(last_checkpoint(whole))) == []
    for figure in ("train/mlm_loss", "sparsity/digest", "train/tokens_seen"):
        assert column(folder, figure) == column(whole, figure), figure


def test_a_launcher_says_what_it_cannot_write(disk: Path) -> None:
    mount("-o", "remount,ro", str(disk))
    with pytest.raises(BadInput, match="cannot be written"), hold_run(RunFolder(disk / "run")):
        pass


def test_one_failed_write_costs_one_checkpoint(text: Text, tmp_path: Path, disk: Path) -> None:
    """Full at step 4, with room again at step 6: the run does not even stop."""
    config = run_config(text, disk, "run", checkpoint={"interval_steps": 2})
    plan = check_pretraining(config)
    begin_run(Pretraining(config), plan)
    states = pool.run(2, full_for_one_checkpoint, config, asdict(plan), disk)
    assert "error" not in states[0], states
    folder = run_folder_of(config)
    assert list_steps(folder.checkpoints) == [2, 6]
    newest, refused = find_newest(folder.checkpoints)
    assert newest is not None and newest.step == 6 and refused == []
    assert "the checkpoint of step 4 is not written: [Errno 28]" in folder.events_file.read_text()
    assert sorted(column(folder, "train/mlm_loss")) == [1, 2, 3, 4, 5, 6]
    whole = train(2, run_config(text, tmp_path, "run"))
    assert differences(contents(last_checkpoint(folder)), contents(last_checkpoint(whole))) == []


def full_for_one_checkpoint(config: Any, plan: dict[str, Any], disk: Path) -> dict[str, Any]:
    from bert.corpora.batches import RowBatches
    from distributed.checkpoint.background import CheckpointWriter

    micro_batches, writers = RowBatches.micro_batches, []
    settle = CheckpointWriter.settle

    def note_writer(self: CheckpointWriter) -> None:
        writers.append(self)
        settle(self)

    def act(self: Any, batch: int) -> Any:
        if not self.evaluation and batch in (3, 5):
            if batch == 5:
                settle(writers[-1])  # collective: the write of step 4 has failed by now
            if dist.get_rank() == 0:
                fill(disk) if batch == 3 else (disk / "ballast").unlink()
            dist.barrier()
        return micro_batches(self, batch)

    RowBatches.micro_batches = act  # type: ignore[method-assign]
    CheckpointWriter.settle = note_writer  # type: ignore[method-assign]
    try:
        return train_here(config, plan, None)
    finally:
        RowBatches.micro_batches = micro_batches  # type: ignore[method-assign]
        CheckpointWriter.settle = settle  # type: ignore[method-assign]
