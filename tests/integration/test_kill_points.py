"""`kill -9` at named points of the program: the run ends as if nothing had happened.

Through Ray a killed worker's group is replaced; without Ray the same command is given again.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.commands import ROOT, Command, checkpoints, environment
from tests.integration.conftest import Start
from tests.integration.faults.sitecustomize import POINTS
from tests.integration.test_faults import assert_equal_runs

FAULTS = Path(__file__).parent / "faults"
# Which time, on which of two ranks: each in the middle of the run, after a checkpoint.
MOMENTS = {
    "forward": (40, 1),
    "step": (15, 0),
    "all-reduce": (60, 1),
    "threshold": (5, 0),
    "mid-write": (30, 1),
    "before-manifest": (2, 0),
    "before-rename": (2, 0),
    "after-rename": (2, 0),
    "removing-old": (3, 0),
    "reporting": (2, 1),
    "group-start": (1, 0),
}


def killing(point: str, count: int, rank: int, marker: Path) -> dict[str, str]:
    return environment(
        PYTHONPATH=f"{FAULTS}{os.pathsep}{ROOT}",
        SPARSEBERT_TEST_KILL=f"{point}:{count}:{rank}:{marker}",
    )


def test_every_point_has_a_moment() -> None:
    assert MOMENTS.keys() == POINTS.keys()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "point", ["forward", "threshold", "mid-write", "before-rename", "reporting"]
)
def test_a_worker_killed_at_a_point(
    point: str,
    reference: tuple[Command, Path],
    workspace: Path,
    config_file: Path,
    start: Start,
) -> None:
    run, marker = workspace / "runs" / f"kill-{point}", workspace / f"killed-{point}"
    env = killing(point, *MOMENTS[point], marker)
    command = start("pretrain", config_file, f"name=kill-{point}", env=env)
    assert command.wait() == 0, command.out + command.err
    assert marker.exists(), "it was never killed"
    assert "its process died; restarting from step" in command.out
    assert_equal_runs(run, reference[1])


@pytest.mark.timeout(900)
def test_an_exception_while_the_group_starts(
    reference: tuple[Command, Path], workspace: Path, config_file: Path, start: Start
) -> None:
    run, marker = workspace / "runs" / "group-start", workspace / "raised-group-start"
    env = killing("group-start", *MOMENTS["group-start"], marker)
    command = start("pretrain", config_file, "name=group-start", env=env)
    assert command.wait() == 0, command.out + command.err
    assert marker.exists(), "it was never raised"
    assert "the workers could not start (" in command.out
    assert "starting them again (2 more time(s))" in command.out
    assert_equal_runs(run, reference[1])


@pytest.fixture(scope="module")
def alone(workspace: Path, config_file: Path, start: Start) -> Path:
    """The run of one process, without Ray."""
    command = start("pretrain", config_file, "name=alone", "--local")
    assert command.wait() == 0, command.out + command.err
    return workspace / "runs" / "alone"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", sorted(set(POINTS) - {"reporting", "group-start"}))
def test_a_process_killed_at_a_point(
    point: str, alone: Path, workspace: Path, config_file: Path, start: Start
) -> None:
    run, marker = workspace / "runs" / f"alone-{point}", workspace / f"killed-alone-{point}"
    env = killing(point, MOMENTS[point][0], 0, marker)
    arguments = ("pretrain", config_file, f"name=alone-{point}", "--local")
    killed = start(*arguments, env=env)
    assert killed.wait() == -signal.SIGKILL, killed.out + killed.err
    assert marker.exists()
    before = set(checkpoints(run))
    again = start(*arguments, env=env)
    assert again.wait() == 0, again.out + again.err
    assert before - set(checkpoints(run)) <= {10, 20}, "nothing but what is due is removed"
    assert_equal_runs(run, alone)
