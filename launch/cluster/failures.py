"""What befalls the workers, from Ray Train's controller to the driver: a JSON line an event.

Light on purpose: the controller's process imports it, and needs no torch.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.errors import BadInput, Unrecoverable
from training.folder import last_step

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
    """Add a line for `FailureTail`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILE_NAME, "a") as out:
        out.write(json.dumps(vars(failure)) + "\n")


class FailureTail:
    """Reads what `record_failure` has added."""

    def __init__(self, folder: Path) -> None:
        """Nothing needs to be there yet."""
        self._file = folder / FILE_NAME
        self._known = 0

    def poll(self) -> list[Failure]:
        """Failures that came since the last call."""
        try:
            lines = self._file.read_text().splitlines(keepends=True)
        except OSError:  # not there yet, or storage does not answer for a moment
            return []
        new = [line for line in lines[self._known :] if line.endswith("\n")]
        self._known += len(new)
        return [Failure(**json.loads(line)) for line in new]


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

    def look(self, failure: Failure, step: int) -> str | None:
        """Take the next failure, which came after `step` was logged; a diagnosis if it repeats."""
        if step > self.step or failure.reason != self.reason:
            self.step, self.times, self.reason = step, 0, failure.reason
        self.times += 1
        if self.times < (_MOST_DIED if failure.died else _MOST_RAISED):
            return None
        return (
            f"training failed {self.times} times in a row after step {self.step} ({failure}): "
            "another restart would too"
        )
