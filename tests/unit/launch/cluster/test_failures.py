import json
from pathlib import Path

import pytest

from distributed.checkpoint.manifest import BadCheckpoint, write_manifest
from distributed.errors import BadInput
from launch.cluster.failures import FILE_NAME, BackOff, CrashLoops, Failure, Failures, find_cause
from training.folder import RunFolder

RAISED = Failure(1, "KeyError: 'x'")
DIED = Failure(0, "its process died", died=True)


def test_an_exception_that_comes_again_ends_the_run() -> None:
    loops = CrashLoops()
    assert loops.diagnose(RAISED, 17) is None
    told = loops.diagnose(RAISED, 17)
    assert told is not None and "2 times in a row after step 17 (worker 1: KeyError: 'x')" in told


def test_deaths_may_be_accidents_twice() -> None:
    loops = CrashLoops()
    assert [loops.diagnose(DIED, 17) is None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(("failure", "step"), [(RAISED, 18), (Failure(1, "other"), 17)])
def test_progress_or_another_reason_is_no_loop(failure: Failure, step: int) -> None:
    loops = CrashLoops()
    assert loops.diagnose(RAISED, 17) is None
    assert loops.diagnose(failure, step) is None


def test_a_run_that_falls_back_behind_its_crash_is_still_in_the_loop() -> None:
    loops = CrashLoops()
    assert loops.diagnose(RAISED, 17) is None
    assert loops.diagnose(RAISED, 16) is not None


def test_back_off_grows_without_progress_and_is_forgotten_with_it() -> None:
    back_off = BackOff()
    assert [back_off.next_seconds(17) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [back_off.next_seconds(step) for step in (16, 18, 18, 19)] == [60, 0, 1, 0]


ACTOR_DIED = RuntimeError(
    "A worker health check failed.\nThe actor died unexpectedly before finishing this task.\n"
    "exit detail: Worker unexpectedly exits with a connection error code 2."
)
LOST = RuntimeError("[../gloo/pair.cc:534] Connection closed by peer [127.0.0.1]")
ODD = ValueError("odd\nand long")
TRACEBACK = RuntimeError("Traceback (most recent call last):\n  File\nKeyError: 'x'\n")


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ({0: LOST, 1: ACTOR_DIED}, Failure(1, "its process died", died=True)),
        ({0: LOST, 2: ODD, 1: BadInput("lower x")}, Failure(1, "lower x", bad_input=True)),
        ({0: BadCheckpoint("no file")}, Failure(0, "no file", bad_input=True)),
        ({1: ODD, 0: LOST}, Failure(1, "ValueError: odd")),
        ({0: TRACEBACK}, Failure(0, "KeyError: 'x'")),
        ({0: TimeoutError()}, Failure(0, "TimeoutError: ")),
    ],
)
def test_the_cause_is_found(errors: dict[int, BaseException], cause: Failure) -> None:
    assert find_cause(errors) == cause


def test_a_restart_is_told_while_there_are_any_left(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = RunFolder(tmp_path)
    step = folder.checkpoints / "step-00000020"
    step.mkdir(parents=True)
    fields = {"step": 20, "world_size": 1, "optimizer_steps": 20}
    write_manifest(step, {**fields, "parameters": {}, "files": {}, "state": {}})
    failures = Failures(tmp_path, folder, 1, say=notes.append, stop_requested=lambda: False)
    for rank in (0, 1):
        with open(tmp_path / FILE_NAME, "a") as file:
            file.write(json.dumps(vars(Failure(rank, f"gone {rank}"))) + "\n")
        assert not failures.poll()
    assert notes == ["worker 0: gone 0; restarting from step 20 (0 restart(s) left)"]
    assert failures.last == Failure(1, "gone 1")
    assert (failures.count, failures.restarts_left, failures.is_exhausted) == (2, 0, True)
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write(json.dumps(vars(Failure(0, "mend it", bad_input=True))) + "\n")
    assert failures.poll()
    assert failures.bad_input == Failure(0, "mend it", bad_input=True)
    assert len(notes) == 1


def test_a_group_that_fails_on_the_way_to_a_stop_is_not_started_again(tmp_path: Path) -> None:
    notes: list[str] = []
    failures = Failures(
        tmp_path, RunFolder(tmp_path), 9, say=notes.append, stop_requested=lambda: True
    )
    assert not failures.poll()
    (tmp_path / FILE_NAME).write_text(json.dumps(vars(Failure(1, "gone"))) + "\n")
    assert failures.poll() and failures.has_stopped
    assert notes == ["worker 1: gone; not restarting, as a stop was asked for"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([Failure(1, "a mask has changed", final=True)], "worker 1: a mask has changed"),
        ([Failure(0, "KeyError: 1")] * 2, "2 times in a row after step 0 (worker 0: KeyError: 1)"),
    ],
)
def test_what_a_restart_cannot_mend_ends_the_run(
    tmp_path: Path, written: list[Failure], words: str
) -> None:
    failures = Failures(
        tmp_path, RunFolder(tmp_path), 9, say=lambda _: None, stop_requested=lambda: False
    )
    lines = [json.dumps(vars(failure)) + "\n" for failure in written]
    (tmp_path / FILE_NAME).write_text("".join(lines))
    assert failures.poll()
    assert failures.diagnosis is not None and words in failures.diagnosis


def test_a_failure_that_nobody_recorded_costs_a_restart_too(tmp_path: Path) -> None:
    failures = Failures(
        tmp_path, RunFolder(tmp_path), 1, say=lambda _: None, stop_requested=lambda: False
    )
    failures.spend_restart()
    assert (failures.restarts_left, failures.is_exhausted) == (0, False)
    failures.spend_restart()
    assert failures.is_exhausted and not failures.is_final
