"""Two launchers on one run folder, as two users give them."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.commands import last_step
from tests.integration.conftest import STEPS, Start

pytestmark = pytest.mark.cluster


def test_the_second_is_refused_and_a_killed_one_blocks_nobody(
    workspace: Path, config_file: Path, start: Start
) -> None:
    run = workspace / "runs" / "leased"
    arguments = ("pretrain", config_file, "name=leased", "--local")
    first = start(*arguments)
    first.await_step(run, 2)
    os.kill(first.process.pid, signal.SIGSTOP)  # so that it does not end meanwhile
    second = start(*arguments)
    assert second.wait() == 2
    (line,) = second.err.splitlines()
    assert line.startswith(f"error: {run} is being trained by process {first.process.pid} on ")
    assert "which started at 20" in line and "another name" in line

    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait(30)
    assert (run / "lease.json").exists()
    third = start(*arguments)
    assert third.wait() == 0, third.out + third.err
    assert last_step(run) == STEPS
    assert not (run / "lease.json").exists()
