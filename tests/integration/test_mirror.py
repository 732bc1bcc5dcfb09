"""A run whose folder is lost goes on from its mirror, as if nothing had happened."""

import shutil
import signal
from pathlib import Path

from tests.integration.commands import checkpoints, last_step
from tests.integration.conftest import Start
from tests.integration.test_faults import assert_equal_runs


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


def test_no_such_storage(workspace: Path, config_file: Path, start: Start) -> None:
    options = ["name=no-mirror", "checkpoint.mirror=s3://127.0.0.1"]
    command = start("pretrain", config_file, *options, "--local")
    assert command.wait() == 2
    (line,) = command.err.splitlines()
    assert line.startswith("error: checkpoint.mirror cannot be used (")
    assert not (workspace / "runs" / "no-mirror").exists()
