import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launch.progress import (
    ProgressDisplay,
    follow_metrics,
    format_seconds,
    validation_losses,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=60, force_terminal=False), text


def record(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "train/mlm_loss": 5.1234,
        "sparsity/actual": 0.8181,
        "throughput/tokens_per_second": 4310.4,
        **more,
    }


def test_plain_lines() -> None:
    console, text = plain()
    clock = Clock()
    with ProgressDisplay(300, 0, "demo", console=console, clock=clock) as display:
        for step in range(10, 311, 10):
            display.update(record(min(step, 300)))
            clock.now += 2.0
    lines = text.getvalue().splitlines()
    assert lines[0] == "step 10/300  loss 5.123  sparsity 0.82  4,310 tok/s", "at once"
    assert lines[1].startswith("step 40/300"), "6 seconds later, the first after 5"
    assert lines[1].endswith("left 0:00:52"), "260 steps at 5 a second"
    assert lines[-1].startswith("step 300/300")
    assert lines[-1].endswith("left 0:00:00")
    assert len([line for line in lines if line.startswith("step 300")]) <= 2


def test_the_last_record_is_shown_when_it_ends_early() -> None:
    console, text = plain()
    with ProgressDisplay(300, 0, "demo", console=console, clock=Clock()) as display:
        for step in (10, 20, 30):
            display.update(record(step))
    assert [line.split()[1] for line in text.getvalue().splitlines()] == ["10/300", "30/300"]


def test_validation_is_always_shown() -> None:
    console, text = plain()
    with ProgressDisplay(300, 0, "demo", console=console, clock=Clock()) as display:
        display.update({"step": 10})
        display.update({"step": 20, "validation/general/mlm_loss": 5.5, "validation/a/b": 1})
    assert text.getvalue().splitlines() == [
        "step 10/300",
        "step 20/300  validation  general 5.500",
        "step 20/300",
    ]


def test_a_record_with_little_in_it() -> None:
    console, text = plain()
    with ProgressDisplay(3, 0, "demo", console=console, clock=Clock()) as display:
        display.update({})
        display.update({"step": 3, "train/mlm_loss": float("nan")})
    assert text.getvalue().splitlines() == ["step 0/3", "step 3/3  loss nan"]


def test_time_left_after_a_restart() -> None:
    console, text = plain()
    clock = Clock()
    with ProgressDisplay(100, 50, "demo", console=console, clock=clock) as display:
        display.update({"step": 60})
        clock.now += 10
        display.update({"step": 70})  # one step a second
        clock.now += 1000  # the workers start again
        display.update({"step": 60})
        clock.now += 20
        display.update({"step": 70})  # now half of that
    lines = text.getvalue().splitlines()
    assert lines[1].endswith("left 0:00:30")
    assert lines[2] == "step 60/100"
    assert lines[3].endswith("left 0:01:00")


def test_records_from_before_this_start_say_nothing_about_speed() -> None:
    console, text = plain()
    clock = Clock()
    with ProgressDisplay(100, 50, "demo", console=console, clock=clock) as display:
        for step in (40, 50):
            display.update({"step": step})
        clock.now += 30  # starting
        display.update({"step": 60})
        clock.now += 10
        display.update({"step": 70})
    lines = text.getvalue().splitlines()
    assert lines[-2] == "step 60/100"
    assert lines[-1].endswith("left 0:00:30")


def test_step_seconds_serve_before_there_is_a_rate() -> None:
    console, text = plain()
    with ProgressDisplay(100, 0, "demo", console=console, clock=Clock()) as display:
        display.update({"step": 10, "throughput/step_seconds": 2.0})
    assert text.getvalue().splitlines() == ["step 10/100  left 0:03:00"]


def test_live_line_on_a_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True, color_system=None)
    with ProgressDisplay(300, 0, "demo [x]", console=console, clock=Clock()) as display:
        display.update(record(150))
        display.update(record(160, **{"validation/general/mlm_loss": 5.5}))
    shown = text.getvalue()
    assert "demo [x]" in shown
    assert "step 160/300  loss 5.123  sparsity 0.82  4,310 tok/s" in shown
    assert "validation  general 5.500\n" in shown


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00:00"), (80.4, "0:01:20"), (90061, "25:01:01"), (-1, "0:00:00")],
)
def test_format_seconds(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


def test_validation_losses() -> None:
    figures = {"validation/a/mlm_loss": 1.0, "validation/a/accuracy": 2.0, "train/mlm_loss": 3.0}
    assert validation_losses(figures) == {"a": 1.0}


# Following a file


def append(file: Path, text: str) -> None:
    with open(file, "a") as out:
        out.write(text)


@pytest.mark.parametrize("as_function", [False, True])
def test_follow_reads_what_came_before_the_stop(tmp_path: Path, as_function: bool) -> None:
    file = tmp_path / "metrics.jsonl"
    seen: list[int] = []
    stop = threading.Event()
    thread = threading.Thread(
        target=follow_metrics,
        args=(file, stop.is_set if as_function else stop, lambda r: seen.append(r["step"])),
        kwargs={"poll_seconds": 0.01, "skip_existing": False},
    )
    thread.start()
    append(file, '{"step": 1}\n')
    deadline = time.monotonic() + 10
    while seen != [1] and time.monotonic() < deadline:
        time.sleep(0.01)
    append(file, '{"step": 2}\n')
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [1, 2]


def test_follow_leaves_out_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append(file, '{"step": 1}\n')
    seen: list[int] = []

    def stop() -> bool:
        if not seen:
            append(file, '{"step": 2}\n')
        return True

    follow_metrics(file, stop, lambda r: seen.append(r["step"]))
    assert seen == [2]
