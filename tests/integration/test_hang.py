"""A worker that stands still, as a stopped process does, is found and its group replaced."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.commands import Command
from tests.integration.conftest import Start
from tests.integration.test_faults import assert_equal_runs

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(900)
def test_a_stopped_worker_is_replaced(
    reference: tuple[Command, Path],
    ray_head: tuple[Command, dict[str, str]],
    workspace: Path,
    config_file: Path,
    start: Start,
) -> None:
    run = workspace / "runs" / "hangs"
    head, env = ray_head
    command = start("pretrain", config_file, "name=hangs", "launch.hang_seconds=20", env=env)
    command.await_step(run, 12)
    os.kill(read_pid(run, head), signal.SIGSTOP)
    assert command.wait() == 0, command.out + command.err
    assert "worker 0: no step was finished for 20 s" in command.out
    assert "restarting from step 10" in command.out
    assert "File " in (run / "logs" / "hang-0.log").read_text()
    assert_equal_runs(run, reference[1])


def read_pid(run: Path, cluster: Command) -> int:
    """Of the worker that does not write the TensorBoard file, whose name has its writer.

    Args:
        run: of two workers, the only ones that `cluster` has.
        cluster: the command that started Ray.
    """
    newest = max((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    workers = {worker.pid for worker in cluster.workers()}
    assert len(workers) == 2
    (other,) = workers - {int(part) for part in newest.name.split(".") if part.isdigit()}
    return other
