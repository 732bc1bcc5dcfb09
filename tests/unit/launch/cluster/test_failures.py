import pytest

from launch.cluster.failures import BackOff, CrashLoops, Failure

RAISED = Failure(1, "KeyError: 'x'")
DIED = Failure(0, "its process died", died=True)


def test_an_exception_that_comes_again_ends_the_run() -> None:
    loops = CrashLoops()
    assert loops.look(RAISED, 17) is None
    told = loops.look(RAISED, 17)
    assert told is not None and "2 times in a row after step 17 (worker 1: KeyError: 'x')" in told


def test_deaths_may_be_accidents_twice() -> None:
    loops = CrashLoops()
    assert [loops.look(DIED, 17) is None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(("failure", "step"), [(RAISED, 18), (Failure(1, "other"), 17)])
def test_progress_or_another_reason_is_no_loop(failure: Failure, step: int) -> None:
    loops = CrashLoops()
    assert loops.look(RAISED, 17) is None
    assert loops.look(failure, step) is None


def test_a_run_that_falls_back_behind_its_crash_is_still_in_the_loop() -> None:
    loops = CrashLoops()
    assert loops.look(RAISED, 17) is None
    assert loops.look(RAISED, 16) is not None


def test_back_off_grows_without_progress_and_is_forgotten_with_it() -> None:
    back_off = BackOff()
    assert [back_off.next_seconds(17) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [back_off.next_seconds(step) for step in (16, 18, 18, 19)] == [60, 0, 1, 0]
