"""A run whose folder is lost goes on from its mirror, as if nothing had happened."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.commands import checkpoints, last_step
from tests.integration.conftest import Start
from tests.integration.test_faults import assert_equal_runs

pytestmark = pytest.mark.cluster


def test_a_lost_run_folder(alone: Path, workspace: Path, config_file: Path, start: Start) -> None:
    run, mirror = workspace / "runs" / "mirrored", workspace / "other-disk"
    options = ["name=mirrored", f"checkpoint.mirror=file://{mirror}", "--local"]
    command = start("pretrain", config_file, *options)
    command.await_step(run, 12)
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 75, command.out + command.err
    step = last_step(run)
    copies = sorted(path.name for path in (mirror / "mirrored" / "checkpoints").iterdir())
    assert copies == [f"step-{saved:08d}" for saved in checkpoints(run)]
    shutil.rmtree(run)

    command = start("pretrain", config_file, *options)
    assert command.wait() == 0, command.out + command.err
    told = f"fetched the checkpoint of step {step} from file://{mirror}/mirrored"
    assert told in command.out.splitlines()
    assert_equal_runs(run, alone)


@pytest.mark.parametrize("options", [["--local"], []], ids=["local", "Ray"])
def test_a_complete_run_copies_what_is_left(
    alone: Path, workspace: Path, config_file: Path, start: Start, options: list[str]
) -> None:
    """As after storage that did not answer until training was over."""
    run = workspace / "runs" / f"complete{len(options)}"
    shutil.copytree(alone, run)
    mirror = workspace / "late-disk"
    options = [*options, f"checkpoint.mirror=file://{mirror}"]
    command = start("pretrain", config_file, f"name={run.name}", *options)
    assert command.wait() == 0, command.out + command.err
    assert "is complete" in command.out and not command.err
    copies = sorted(path.name for path in (mirror / run.name / "checkpoints").iterdir())
    assert copies == [f"step-{saved:08d}" for saved in checkpoints(run)]
    assert not (run / "lease.json").exists()
    assert_equal_runs(run, alone)


def test_keys_in_the_uri(workspace: Path, config_file: Path, start: Start) -> None:
    options = ["name=no-mirror", "checkpoint.mirror=s3://key:secret@bucket/runs"]
    command = start("pretrain", config_file, *options, "--local")
    assert command.wait() == 2
    (line,) = command.err.splitlines()
    assert line.startswith("error: ") and "checkpoint.mirror" in line and "no keys" in line
    assert "secret" not in line
    assert not (workspace / "runs" / "no-mirror").exists()


def test_a_storage_that_does_not_answer(
    workspace: Path, config_file: Path, alone: Path, start: Start
) -> None:
    """A run with checkpoints goes on without it and says so; one without has to wait."""
    run = workspace / "runs" / "mirror-away"
    shutil.copytree(alone, run)
    for step in sorted(checkpoints(run))[1:]:
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    away = "checkpoint.mirror=s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x"
    command = start("pretrain", config_file, f"name={run.name}", away, "--local")
    assert command.wait() == 0, command.out + command.err
    assert "checkpoint.mirror (s3://bucket/runs/mirror-away) cannot be read (" in command.out
    assert "; going on from " in command.out
    assert "no copy at s3://bucket/runs/mirror-away: " in command.out
    assert_equal_runs(run, alone)

    command = start("pretrain", config_file, "name=no-mirror", away, "--local")
    assert command.wait() == 2
    assert "cannot be read (" in command.err and "set it to null to start anew" in command.err
    assert not (workspace / "runs" / "no-mirror").exists()
