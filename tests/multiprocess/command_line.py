"""`sparsebert` as torchrun starts it: the command line itself, on every process of a pool."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.multiprocess import pool


class Answer(NamedTuple):
    """How a command ended on the first process."""

    code: int
    out: str
    err: str


def sparsebert(world_size: int, folder: Path, *arguments: str | Path) -> Answer:
    """Run the command in `folder` on `world_size` processes; all leave with the same code."""
    answers = pool.run(world_size, answer_here, folder, [str(a) for a in arguments])
    assert {code for code, _, _ in answers} == {answers[0][0]}, answers
    return Answer(*answers[0])


def answer_here(folder: Path, arguments: list[str]) -> tuple[int, str, str]:
    """In a pool process."""
    from launch.__main__ import main

    return call_here(main, folder, arguments)


def call_here(
    function: Callable[[], Any], folder: Path, arguments: list[str] | None = None
) -> tuple[int, str, str]:
    """Call `function` in `folder` with these command line arguments: exit code, stdout, stderr.

    An error that is no exit is for the pool to tell.
    """
    code: Any = 0
    arguments_before, sys.argv = sys.argv, ["sparsebert", *(arguments or [])]
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                function()
            except SystemExit as end:
                code = end.code or 0
    finally:
        sys.argv = arguments_before
    return int(code), out.getvalue(), err.getvalue()
