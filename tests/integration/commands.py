"""Runs the command line as a user does, in processes of its own, and reads what runs leave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
SECONDS = 240.0  # for a whole run, on a machine that is busy
RAY_NOISE = ("INFO", "WARNING", "Traceback", "ray.init", "raylet", "gcs_", "RayTrainWorker")


def environment(**extra: str) -> dict[str, str]:
    """Of a user without a cluster: what this process knows of Ray and torchrun is left out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TORCHELASTIC_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


class Command:
    """`python -m launch ARGUMENTS`, started in a process group of its own, as from a terminal."""

    def __init__(
        self,
        *arguments: str | Path,
        env: dict[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m"),
        log: Path,
        seconds: float = SECONDS,
    ) -> None:
        self._seconds = seconds
        self._out = log.with_suffix(".out")
        self._err = log.with_suffix(".err")
        with open(self._out, "w") as out, open(self._err, "w") as err:
            self.process = subprocess.Popen(
                [*program, "launch", *map(str, arguments)],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=env or environment(),
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self) -> int:
        """The exit code; whatever it started and left is ended too."""
        try:
            return self.process.wait(self._seconds)
        finally:
            self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end at any time
                for process in self.descendants():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            self.process.kill()
            self.process.wait(30)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        """The training processes of the Ray cluster that the command started."""
        found = []
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def await_that(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + self._seconds
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, (
                f"{what}: waited {self._seconds} s\n{self.out}{self.err}"
            )
            time.sleep(0.02)

    def await_step(self, run: Path, step: int) -> None:
        self.await_that(lambda: last_step(run) >= step, f"step {step}")

    def interrupt(self) -> None:
        """Ctrl-C: a terminal sends it to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)


def last_step(run: Path) -> int:
    return max((record["step"] for record in metrics(run)), default=0)


def metrics(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def checkpoints(run: Path) -> dict[int, dict[str, Any]]:
    """The manifests, by step."""
    files = (run / "checkpoints").glob("step-*/manifest.json")
    manifests = [json.loads(file.read_text()) for file in files]
    return {manifest["step"]: manifest for manifest in sorted(manifests, key=lambda m: m["step"])}


def digests(run: Path) -> set[str]:
    return {record["sparsity/digest"] for record in metrics(run) if "sparsity/digest" in record}


def assert_quiet(command: Command) -> None:
    """No word of Ray's own; nothing at all on stderr."""
    assert command.err == ""
    assert not [word for word in RAY_NOISE if word in command.out], command.out
