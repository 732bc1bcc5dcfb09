"""Cases for the tests of benchmarks/case_runner.py: no figure, one, and all ways to end badly."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.case_runner import Case

Figures = Iterator[dict[str, Any]]


def quick(*, device: str, smoke: bool, value: int) -> Figures:
    yield {"value": value, "device": device}
    yield {"smoke": smoke, "a list": [1, 2]}


def failing(*, device: str, smoke: bool) -> Figures:
    yield {"before": 1}
    raise ValueError("there is no such kernel\nand more lines")


def not_a_number(*, device: str, smoke: bool) -> Figures:
    yield {"before": 1.5}
    yield {"loss": math.nan}


def killed(*, device: str, smoke: bool) -> Figures:
    yield {"before": 1}
    os.kill(os.getpid(), signal.SIGKILL)


def endless(*, device: str, smoke: bool, **_: int) -> Figures:
    child = subprocess.Popen(["sleep", "600"])
    yield {"pid": os.getpid(), "pid of child": child.pid}
    time.sleep(600)


CASES = [
    Case(quick, 60, {"value": 1}),
    Case(failing, 60),
    Case(quick, 20, {"value": 2}),
    Case(not_a_number, 60),
    Case(killed, 60),
    Case(endless, 6),
    Case(endless, 600, {"long": 1}),
]
