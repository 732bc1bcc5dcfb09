"""Worker failures: Ray's controller writes them, the driver reads them, one JSON object a line.

Light on purpose: the controller's process imports it, and needs no torch.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.errors import BadInput, Unrecoverable
from training.attempt import newest_step
from training.folder import RunFolder, last_step
from training.tail import Tail

FILE_NAME = "failures.jsonl"
_MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Failure:
    """One failure of the worker group, told by the worker that says most about its cause."""

    rank: int | None  # None: the group did not start
    reason: str  # one line
    bad_input: bool = False  # the user can mend it, and a restart cannot
    final: bool = False  # a restart cannot mend it, and neither can the user's input
    died: bool = False  # the process ended without a word

    def __str__(self) -> str:
        if self.rank is None:
            return f"the workers could not start: {self.reason}"
        return f"worker {self.rank}: {self.reason}"


def find_cause(errors: Mapping[int, BaseException]) -> Failure:
    """The cause among what the workers of one group ended with, by rank.

    When one worker ends, the others lose their connections to it: theirs come last.
    """
    failures = [_describe(rank, error) for rank, error in sorted(errors.items())]
    return min(failures, key=lambda f: (not f.bad_input, not f.final, "peer" in f.reason.lower()))


def _describe(rank: int, error: BaseException) -> Failure:
    if isinstance(error, BadInput):
        return Failure(rank, str(error), bad_input=True)
    if isinstance(error, Unrecoverable):
        return Failure(rank, str(error), final=True)
    if "actor died" in str(error):
        return Failure(rank, "its process died", died=True)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # A message begins with what matters, a traceback ends with it.
    reason = lines[-1] if "Traceback" in lines[0] else f"{type(error).__name__}: {lines[0]}"
    return Failure(rank, reason.rstrip("."))


def last_line(error: BaseException) -> str:
    """What an exception says at its end, where Ray's have their cause."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def record_failure(folder: Path, failure: Failure) -> None:
    """Add a line for `Failures`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILE_NAME, "a") as out:
        out.write(json.dumps(vars(failure)) + "\n")


class BackOff:
    """How long to wait before a restart: not at all after progress, without it ever longer."""

    def __init__(self) -> None:
        self._step = -1
        self._seconds = 0.0

    def next_seconds(self, step: int) -> float:
        """At a failure after `step` was logged: seconds until the next start."""
        progress = step > self._step
        self._seconds = 0.0 if progress else min(_MOST_SECONDS, max(1.0, 2 * self._seconds))
        self._step = max(step, self._step)
        return self._seconds


def build_callback(folder: Path, metrics_file: Path) -> Any:
    """An object for ray.train.RunConfig(callbacks=...), which works in the controller's process.

    Args:
        folder: where failures are recorded.
        metrics_file: the run's, which tells progress.
    """
    from ray.train import UserCallback

    back_off = BackOff()

    class RecordFailures(UserCallback):  # type: ignore[misc]  # Ray has no types
        def after_exception(
            self, run_context: Any, worker_exceptions: Mapping[int, Exception]
        ) -> None:
            record_failure(folder, find_cause(worker_exceptions))
            # The controller waits for this call before it starts the next group.
            time.sleep(back_off.next_seconds(last_step(metrics_file)))

    return RecordFailures()


# An exception at a step where it came before is the program's or the data's; a process that dies
# may have met two accidents.
_MOST_RAISED = 2
_MOST_DIED = 3


@dataclass
class CrashLoops:
    """Counts failures in a row without a step of progress between them."""

    step: int = -1
    times: int = 0
    reason: str = ""

    def diagnose(self, failure: Failure, step: int) -> str | None:
        """Record a failure after `step`; return a diagnosis if it repeats, else None."""
        if step > self.step or failure.reason != self.reason:
            self.step, self.times, self.reason = step, 0, failure.reason
        self.times += 1
        if self.times < (_MOST_DIED if failure.died else _MOST_RAISED):
            return None
        return (
            f"training failed {self.times} times in a row after step {self.step} ({failure}): "
            "another restart would too"
        )


class Failures:
    """All failures of a run's groups: told as they come, judged, and counted in one budget."""

    def __init__(
        self,
        attempt: Path,
        folder: RunFolder,
        max_failures: int,
        *,
        say: Callable[[str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Nothing has happened yet.

        Args:
            attempt: the folder in which failures are recorded.
            folder: the run's.
            max_failures: restarts that the run may make.
            say: tells the user.
            stop_requested: whether the run was asked to stop: then there are no more restarts.
        """
        self.restarts_left = max_failures
        self.count = 0
        self.last: Failure | None = None
        self.bad_input: Failure | None = None
        self.diagnosis: str | None = None  # why no restart is worth trying
        self.has_stopped = False  # it failed on the way to a stop that was asked for
        self.is_exhausted = False  # it failed with no restart left
        self._folder = folder
        self._say, self._stop_requested = say, stop_requested
        self._loops = CrashLoops()
        self._tail = Tail(attempt / FILE_NAME)
        self._lock = threading.Lock()  # both threads of the driver look

    @property
    def is_final(self) -> bool:
        """Whether one of them ends the run, whatever restarts are left."""
        return self.bad_input is not None or self.diagnosis is not None or self.has_stopped

    def poll(self) -> bool:
        """Judge the failures since the last call; return `is_final`."""
        with self._lock:
            for record in self._tail.poll():
                if not self.is_final:
                    self._judge(Failure(**record))
            return self.is_final

    def spend_restart(self) -> None:
        """Count a failure that nobody has recorded."""
        with self._lock:
            self.is_exhausted = self.restarts_left == 0
            self.restarts_left = max(0, self.restarts_left - 1)

    def _judge(self, failure: Failure) -> None:
        self.last = failure
        self.count += 1
        if failure.bad_input:
            self.bad_input = failure
        elif failure.final:
            self.diagnosis = str(failure)
        elif self._stop_requested():
            # A restart could save nothing that is not saved, and whoever asked may not wait.
            self.has_stopped = True
            self._say(f"{failure}; not restarting, as a stop was asked for")
        elif self.restarts_left == 0:
            self.is_exhausted = True
        else:
            self.diagnosis = self._loops.diagnose(failure, last_step(self._folder.metrics_file))
            if self.diagnosis is None:
                self.restarts_left -= 1
                self._say(
                    f"{failure}; restarting from step {newest_step(self._folder)} "
                    f"({self.restarts_left} restart(s) left)"
                )
