"""What the user sees while a long job runs: a live line on a terminal, else one every few seconds.

`follow_metrics` brings the records of a run's metrics.jsonl to the display from outside the
training processes, so the loop knows nothing of either.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from training.folder import RunFolder
from training.stopping import STOPPED_EXIT_CODE
from training.tail import Tail

PLAIN_INTERVAL_SECONDS = 5.0


def make_console(*, stderr: bool = False) -> Console:
    """Where people read: as wide as the terminal, and wide enough for a table without one."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=140)


@contextmanager
def ignoring_closed_output(stream: IO[str]) -> Iterator[None]:
    """Survive a closed terminal or pipe: later output to `stream` is discarded."""
    try:
        yield
    except (OSError, SystemExit):  # rich ends the process at a closed pipe
        with suppress(OSError):  # a stream without a file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class StatusLine:
    """How far a long job is. On a terminal a bar that stays; else plain lines, not too often."""

    def __init__(
        self,
        label: str,
        *,
        total: float | None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet; `total` None means that the end is not known."""
        self._console = console or Console()
        self._clock = clock
        self._last_printed: float | None = None
        self._waiting: str | None = None
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if self._console.is_terminal:
            whole = Column(no_wrap=True)
            self._progress = Progress(
                TextColumn("{task.description}", markup=False, table_column=whole),
                # The bar takes what the figures leave.
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
                TextColumn("{task.fields[figures]}", markup=False, table_column=whole),
                console=self._console,
                expand=True,
            )
            self._task = self._progress.add_task(label, total=total, figures="starting")

    def __enter__(self) -> Self:
        if self._progress is not None:
            progress, self._progress = self._progress, None
            with ignoring_closed_output(self._console.file):
                progress.start()
                self._progress = progress
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            with ignoring_closed_output(self._console.file):
                self._progress.stop()
        elif self._waiting is not None:
            self._print(self._waiting)

    def show(
        self, figures: str, *, done: float, total: float | None = None, important: bool = False
    ) -> None:
        """Now `done` of `total`, if that is known by now; plain lines wait unless important."""
        if self._progress is not None:
            with ignoring_closed_output(self._console.file):
                self._progress.update(self._task, completed=done, total=total, figures=figures)
            return
        now, last = self._clock(), self._last_printed
        if important or last is None or now - last >= PLAIN_INTERVAL_SECONDS:
            self._last_printed = now
            self._print(figures)
        else:
            self._waiting = figures

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        with ignoring_closed_output(self._console.file):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        self._waiting = None
        self.note(line)


class ProgressDisplay:
    """The progress of one run: step, loss, sparsity, tokens/s, time left; validation losses."""

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        label: str,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet; `start_step` steps are already done."""
        self._total_steps = total_steps
        self._start_step = self._step = start_step
        self._clock = clock
        # Where and when the rate of this attempt is measured from: its first record, because what
        # came before it is start-up.
        self._rate_origin: tuple[int, float] | None = None
        self._line = StatusLine(label, total=total_steps, console=console, clock=clock)

    def __enter__(self) -> Self:
        self._line.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.__exit__(kind, error, trace)

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one record of metrics.jsonl."""
        step = int(record.get("step", self._step))
        if step <= self._start_step:  # written before this start
            self._rate_origin = None
        elif self._rate_origin is None or step < self._step:  # the latter: workers restarted
            self._rate_origin = step, self._clock()
        self._step = step
        parts = [f"step {step}/{self._total_steps}"]
        if (loss := record.get("train/mlm_loss", record.get("train/loss"))) is not None:
            parts.append(f"loss {loss:.3f}")
        if (sparsity := record.get("sparsity/actual")) is not None:
            parts.append(f"sparsity {sparsity:.2f}")
        if (speed := record.get("throughput/tokens_per_second")) is not None:
            parts.append(f"{speed:,.0f} tok/s")
        if (left := self._seconds_left(record)) is not None:
            parts.append(f"left {format_seconds(left)}")
        self._line.show("  ".join(parts), done=step, important=step >= self._total_steps)
        scores = {key: value for key, value in record.items() if key.startswith("dev/")}
        if scores:
            shown = "  ".join(f"{name[4:]} {score:.4f}" for name, score in scores.items())
            self._line.note(f"step {step}/{self._total_steps}  dev  {shown}")
        losses = validation_losses(record)
        if losses:
            shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            self._line.note(f"step {step}/{self._total_steps}  validation  {shown}")

    def note(self, text: str) -> None:
        """A line that stays."""
        self._line.note(text)

    def _seconds_left(self, record: Mapping[str, Any]) -> float | None:
        per_step = record.get("throughput/step_seconds")
        if self._rate_origin is not None:
            first_step, since = self._rate_origin
            steps, seconds = self._step - first_step, self._clock() - since
            # Records that were read all at once say nothing about speed.
            if steps and seconds > 1:
                per_step = seconds / steps
        return None if per_step is None else (self._total_steps - self._step) * per_step


def validation_losses(record: Mapping[str, Any]) -> dict[str, float]:
    """From the name of a validation set to its loss, as far as `record` has any."""
    prefix, suffix = "validation/", "/mlm_loss"
    return {
        key[len(prefix) : -len(suffix)]: value
        for key, value in record.items()
        if key.startswith(prefix) and key.endswith(suffix) and isinstance(value, int | float)
    }


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:20."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def follow_metrics(
    path: Path,
    stop: threading.Event | Callable[[], bool],
    on_record: Callable[[dict[str, Any]], None],
    *,
    skip_existing: bool = True,
    poll_seconds: float = 0.5,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Call `on_record` with each record that is written to `path`, until `stop` says so.

    The file may not exist yet, end in half a line, or be cut back by a restart. What is there when
    `stop` comes is still read.

    Args:
        path: a metrics.jsonl.
        stop: an event, or a function that is asked after each look at the file.
        on_record: called in this thread.
        skip_existing: leave out what is in the file now, written before this start.
        poll_seconds: time between two looks.
        pause: waits for that time, or less when there is something to see.
    """
    tail = Tail(path, skip_existing=skip_existing)
    stopping = False
    while True:
        for record in tail.poll():
            on_record(record)
        if stopping:
            tail.close()
            return
        if isinstance(stop, threading.Event):
            stopping = stop.wait(poll_seconds)
        else:
            stopping = stop()
            if not stopping:
                pause(poll_seconds)


def report_end(
    folder: RunFolder, finished_steps: int, total_steps: int, *, ended_early: bool = False
) -> int:
    """Say how far the run is, and how it goes on if it was stopped; the exit code.

    `ended_early`: it has nothing left to do, whatever its number of steps (fine-tuning).
    """
    is_complete = ended_early or finished_steps >= total_steps
    with ignoring_closed_output(sys.stdout):
        print(
            f"{folder.path} is complete: {finished_steps} steps"
            if is_complete
            else f"{folder.path} is stopped and saved at step {finished_steps} of {total_steps}: "
            "the same command continues it",
            flush=True,
        )
    return 0 if is_complete else STOPPED_EXIT_CODE


def print_notes(notes: Iterable[str]) -> None:
    """Say what the check of a run found worth telling."""
    with ignoring_closed_output(sys.stdout):
        for note in notes:
            print(note, flush=True)
