"""`kill -9` at named points of the program, one after another in one run: it ends as if nothing had
happened.

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

pytestmark = pytest.mark.cluster
FAULTS = Path(__file__).parent / "faults"
# (point, which time since the process started, on which of two ranks). Each later in the run than
# the one before, or Ray's driver takes them for one crash that repeats.
ON_RAY = [
    ("group-start", 1, 0),
    ("mid-write", 5, 1),  # of the checkpoint at step 10
    ("forward", 45, 1),  # step 15, of three forwards each
    ("threshold", 3, 0),  # of steps 11, 15, 19
    ("before-rename", 1, 0),  # of step 20
    ("reporting", 2, 1),  # of steps 20, 30
]
ALONE = [
    ("forward", 70, 0),  # step 12, of six forwards each
    ("all-reduce", 20, 0),
    ("threshold", 2, 0),
    ("step", 6, 0),
    ("mid-write", 5, 0),  # of the checkpoint at step 20, like the next three
    ("before-manifest", 1, 0),
    ("before-rename", 1, 0),
    ("after-rename", 1, 0),
    ("removing-old", 1, 0),
]


def killing(moments: list[tuple[str, int, int]], folder: Path) -> tuple[dict[str, str], list[Path]]:
    """The environment that kills, and the files that appear with each kill."""
    folder.mkdir()
    markers = [folder / point for point, _, _ in moments]
    settings = [
        f"{point}:{count}:{rank}:{marker}"
        for (point, count, rank), marker in zip(moments, markers, strict=True)
    ]
    env = environment(
        PYTHONPATH=f"{FAULTS}{os.pathsep}{ROOT}", SPARSEBERT_TEST_KILLS=";".join(settings)
    )
    return env, markers


def test_every_point_is_killed_at() -> None:
    assert {point for point, _, _ in ON_RAY + ALONE} == POINTS.keys()


@pytest.mark.timeout(900)
def test_workers_killed_at_points(
    reference: tuple[Command, Path], workspace: Path, config_file: Path, start: Start
) -> None:
    run = workspace / "runs" / "killed"
    env, markers = killing(ON_RAY, workspace / "kills")
    arguments = ("pretrain", config_file, "name=killed", "launch.max_failures=8")
    command = start(*arguments, env=env, seconds=600)
    assert command.wait() == 0, command.out + command.err
    assert [marker.name for marker in markers if not marker.exists()] == []
    assert (
        "worker 0: RuntimeError: connectFullMesh failed; restarting from step 0 (7 restart(s) left)"
    ) in command.out
    died = command.out.count("its process died; restarting from step")
    assert died == len(ON_RAY) - 1, command.out
    assert "worker 1: its process died; restarting from step 10 (5 restart(s) left)" in command.out
    assert_equal_runs(run, reference[1])


@pytest.mark.timeout(900)
def test_a_process_killed_at_points(
    alone: Path, workspace: Path, config_file: Path, start: Start
) -> None:
    run = workspace / "runs" / "alone-killed"
    env, markers = killing(ALONE, workspace / "kills-alone")
    arguments = ("pretrain", config_file, f"name={run.name}", "--local")
    for marker in markers:
        command = start(*arguments, env=env)
        assert command.wait() == -signal.SIGKILL, f"{marker.name}: {command.out}{command.err}"
        assert marker.exists()
        kept = set(checkpoints(run))
    command = start(*arguments, env=env)
    assert command.wait() == 0, command.out + command.err
    assert kept <= {10, 20} | set(checkpoints(run)), "nothing but what is due is removed"
    assert_equal_runs(run, alone)
