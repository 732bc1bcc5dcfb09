"""Whatever stops a run, the same command continues it, and it ends as if nothing had happened."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.integration.commands import Command, assert_quiet, checkpoints, last_step, metrics
from tests.integration.conftest import STEPS, Start

pytestmark = pytest.mark.cluster
# What a restart measures anew.
MEASURED = ("throughput/", "memory/", "time", "seconds")


@pytest.mark.timeout(1200)  # four starts: minutes on a machine that does more than this
def test_stopped_twice_it_ends_bit_identical(
    reference: tuple[Command, Path], workspace: Path, config_file: Path, start: Start
) -> None:
    run = workspace / "runs" / "disturbed"

    def begin(step: int) -> Command:
        command = start("pretrain", config_file, "name=disturbed")
        command.await_step(run, step)
        return command

    stopped = begin(step=4)
    stopped.interrupt()
    first = assert_stopped(stopped, run, signal.SIGINT)

    stopped = begin(step=first + 4)
    os.kill(stopped.process.pid, signal.SIGTERM)
    second = assert_stopped(stopped, run, signal.SIGTERM)
    assert second > first

    command = start("pretrain", config_file, "name=disturbed")
    assert command.wait() == 0, command.out + command.err
    assert_quiet(command)
    assert not (run / "stop").exists()
    assert_equal_runs(run, reference[1])


def assert_stopped(command: Command, run: Path, number: signal.Signals) -> int:
    """It left as it should; the step of its last checkpoint."""
    assert command.wait() == 75, command.out + command.err
    assert_quiet(command)
    step = last_step(run)
    assert 0 < step < STEPS
    assert max(checkpoints(run)) == step
    assert f"{number.name}: stopping at the next step's end" in command.out
    assert command.out.splitlines()[-1] == (
        f"{run} is stopped and saved at step {step} of {STEPS}: the same command continues it"
    )
    return step


def assert_equal_runs(run: Path, reference: Path) -> None:
    """Masters, moments and masks bit for bit; every figure but measurements of time."""
    ours, theirs = checkpoints(run)[STEPS], checkpoints(reference)[STEPS]
    assert ours["files"] == theirs["files"], "sizes and SHA-256"
    kinds: set[str] = set()
    for name in ours["files"]:
        with safe_open(run / "checkpoints" / f"step-{STEPS:08d}" / name, framework="pt") as opened:
            kinds |= {key.split("|")[0] for key in opened.keys()}  # noqa: SIM118 (not a dict)
    assert {"master", "exp_avg", "exp_avg_sq", "keep_mask"} <= kinds

    def figures(folder: Path) -> list[dict[str, object]]:
        return [
            {k: value for k, value in record.items() if not any(word in k for word in MEASURED)}
            for record in metrics(folder)
        ]

    assert [record["step"] for record in metrics(run)] == list(range(1, STEPS + 1))
    assert [r["train/mlm_loss"] for r in figures(run)] == [
        r["train/mlm_loss"] for r in figures(reference)
    ]
    assert figures(run)[-1] == figures(reference)[-1]


def test_a_worker_that_raises_is_explained(
    workspace: Path, config_file: Path, cluster: dict[str, str], start: Start
) -> None:
    run = workspace / "runs" / "raises"
    log = run / "logs" / "worker-0.log"
    log.mkdir(parents=True)  # a folder where the worker wants to write a file
    options = ["name=raises", "launch.num_workers=1", "launch.max_failures=1"]
    command = start("pretrain", config_file, *options, env=cluster)
    assert command.wait() == 1
    reason = f"worker 0: IsADirectoryError: [Errno 21] Is a directory: '{log}'"
    assert f"{reason}; restarting from step 0 (0 restart(s) left)" in command.out
    (line,) = command.err.splitlines()
    assert line.startswith(f"error: training failed, {reason} (logs: ")


def test_bad_input_that_a_worker_meets_is_not_tried_again(
    workspace: Path, shards: Path, config_file: Path, cluster: dict[str, str], start: Start
) -> None:
    copy = workspace / "vanishing"
    shutil.copytree(shards / "general", copy)
    options = ["name=vanishing", "launch.num_workers=1", f"data.shards={copy}"]
    command = start("pretrain", config_file, *options, env=cluster)
    command.await_that(lambda: "starting 1 worker" in command.out, "the checks are over")
    shutil.rmtree(copy)
    assert command.wait() == 2, command.out + command.err
    (line,) = command.err.splitlines()
    assert line.startswith("error: ") and str(copy) in line
    assert "restarting" not in command.out
