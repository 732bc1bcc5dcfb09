"""Whether a run's failures are one failure over and over, which another restart does not mend."""

from dataclasses import dataclass

from launch.ray_events import Failure

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
