"""Runs measurements, each in a process of its own with a time limit.

    results.json      every case that has ended, with where and how it ran; replaced after each case
    table.md          the same as tables, printed after each case too
    log.txt           what the cases printed
    running-*         figures and output so far of the case that runs now

Whatever ends this program, the figures that were there are kept, and the next call goes on: a case
that was measured by the same code on the same machine is not measured again.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.case_table import render
from distributed.errors import BadInput
from distributed.files import write_atomically, write_json

ROOT = Path(__file__).resolve().parents[1]
Figures = Mapping[str, Any]  # by name: numbers, text, or lists and mappings for results.json alone
Record = dict[str, Any]

LEFT_EXIT_CODE = 75  # cases are left: the same command goes on
# A case starts if the budget leaves this share of its limit: most cases need less than the limit.
LEAST_SHARE = 0.5
_PR_SET_PDEATHSIG = 1  # prctl(2)
SMOKE_PATIENCE = 6  # a smoke run shares its machine with other work, and its times mean nothing


@dataclass(frozen=True)
class Case:
    """One measurement. `measure(device=..., smoke=..., **arguments)` yields figures as it goes."""

    measure: Callable[..., Iterator[Figures]]
    limit_seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the command line and the results call it."""
        words = (f"{key}={_word(value)}" for key, value in self.arguments.items())
        return " ".join([self.measure.__name__, *words])


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass
class Running:
    """A case in its process."""

    case: Case
    process: subprocess.Popen[bytes]
    file: Path  # the record so far, which the process writes
    log: Path
    began: float
    limit_seconds: float


class Runner:
    """The cases of one module, the folder of their results, and where they run."""

    def __init__(self, module: str, out: Path, *, device: str, smoke: bool, where: Record) -> None:
        """`where` says what decides whether a result is still good: code, machine, versions.

        Raises:
            BadInput: the folder holds results that cannot be read.
        """
        self.cases: list[Case] = importlib.import_module(module).CASES
        self._module, self._device, self._smoke = module, device, smoke
        self._patience = SMOKE_PATIENCE if smoke else 1
        self._where = where
        self._out = out.resolve()
        self._out.mkdir(parents=True, exist_ok=True)
        self._results = read_results(self._out / "results.json")
        self._keep_what_was_cut_off()

    def add_results(self, file: Path) -> None:
        """Take over the results of another folder, unless they are here already.

        Raises:
            BadInput: the file is missing or cannot be read.
        """
        if not file.is_file():
            raise BadInput(f"there are no results in {file}")
        self._results = [r for r in read_results(file) if r not in self._results] + self._results
        self._write()

    def run(
        self,
        *,
        budget_seconds: float,
        only: Sequence[str] = (),
        again: bool = False,
        jobs: int = 1,
    ) -> int:
        """Run the cases that are due and fit into the budget; the exit code of the program.

        Args:
            budget_seconds: no case runs longer than to the end of this.
            only: names with their arguments, or without to mean all of a name; none means all.
            again: also run the cases whose results are here.
            jobs: cases at a time; more than one disturb each other's times.

        Raises:
            BadInput: `only` names no case.
        """
        chosen = self._choose(only)
        due = [case for case in chosen if again or self._find(case) is None]
        print(f"{len(due)} of {len(chosen)} cases are to be measured", flush=True)
        try:
            with _sigterm_interrupts():
                self._run_all(due, time.monotonic() + budget_seconds, jobs)
        except KeyboardInterrupt:
            print("stopped", flush=True)
        if not due:
            print(f"\n{self._write()}", flush=True)
        found = [self._find(case) for case in chosen]
        if None in found:
            print(f"{found.count(None)} cases are left: give the same command again", flush=True)
            return LEFT_EXIT_CODE
        return 0 if all(r is not None and r["status"] == "measured" for r in found) else 1

    def _choose(self, only: Sequence[str]) -> list[Case]:
        chosen = []
        for word in only:
            exact = [case for case in self.cases if case.name == word]
            named = exact or [case for case in self.cases if case.measure.__name__ == word]
            if not named:
                names = ", ".join(dict.fromkeys(case.measure.__name__ for case in self.cases))
                raise BadInput(f"no case is called {word}: the cases are {names}")
            chosen += named
        return [case for case in self.cases if not only or case in chosen]

    def _run_all(self, due: Sequence[Case], end: float, jobs: int) -> None:
        waiting, running = deque(due), []
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    case, left = waiting.popleft(), end - time.monotonic()
                    limit = self._patience * case.limit_seconds
                    if left >= LEAST_SHARE * limit:  # else a shorter one may fit
                        running.append(self._start(case, min(limit, left)))
                time.sleep(0.05)
                for one in list(running):
                    late = time.monotonic() - one.began > one.limit_seconds
                    if late or one.process.poll() is not None:
                        running.remove(one)
                        self._finish(one)
                        print(f"\n{self._write()}", flush=True)
        finally:
            for one in running:
                self._finish(one, stopped=True)

    def _start(self, case: Case, limit_seconds: float) -> Running:
        print(f"\n== {case.name}, {limit_seconds:.0f} s at most", flush=True)
        name = f"running-{self.cases.index(case)}"
        file, log = self._out / f"{name}.json", self._out / f"{name}.log"
        record: Record = {
            "case": case.name,
            "status": "running",
            "figures": {},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "limit_seconds": round(limit_seconds),
            **self._where,
        }
        write_json(file, record)
        size = "smoke" if self._smoke else "full"
        program = [sys.executable, "-m", "benchmarks.case_runner"]
        with open(log, "w") as output:
            process = subprocess.Popen(
                [*program, self._module, case.name, self._device, size, str(file)],
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return Running(case, process, file, log, time.monotonic(), limit_seconds)

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment["PYTHONUNBUFFERED"] = "1"
        if self._device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
            environment.setdefault("OMP_NUM_THREADS", "1")
        else:  # one card, also where there are more
            environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
        return environment

    def _finish(self, one: Running, *, stopped: bool = False) -> None:
        """End the process, and move what it wrote to the results."""
        code = one.process.poll()
        # Its own children too: pytest, data loaders, compilers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        after = f"after {one.limit_seconds:.0f} s"
        if stopped:
            ended = ("cut off", "the program was stopped")
        elif code is not None:
            ended = ("failed", f"its process ended with code {code}: see log.txt")
        elif one.limit_seconds < self._patience * one.case.limit_seconds:
            ended = ("cut off", f"the budget ended {after}")
        else:
            ended = ("out of time", f"not done {after}")
        seconds = round(time.monotonic() - one.began, 1)
        self._move_to_results(one.file, one.log, *ended, seconds=seconds)

    def _keep_what_was_cut_off(self) -> None:
        """The cases during which an earlier call was killed."""
        for file in sorted(self._out.glob("running-*.json")):
            log = file.with_suffix(".log")
            self._move_to_results(file, log, "cut off", "the program was killed")

    def _move_to_results(
        self, file: Path, log: Path, status: str, error: str, **more: float
    ) -> None:
        """`status` and `error` are of a case that did not say its own."""
        record = {**json.loads(file.read_text()), **more}
        if record["status"] == "running":
            record |= {"status": status, "error": error}
        self._results.append(record)
        self._write()
        if log.exists():
            with open(self._out / "log.txt", "ab") as logs:
                logs.write(f"\n== {record['case']}: {record['status']}\n".encode())
                logs.write(log.read_bytes())
            log.unlink()
        file.unlink()

    def _find(self, case: Case) -> Record | None:
        """The last result of this case here and now, unless something outside it ended it."""
        found = [
            record
            for record in self._results
            if record["case"] == case.name
            and record["status"] != "cut off"
            and all(record.get(key) == self._where[key] for key in ("code", "smoke", "machine"))
        ]
        return found[-1] if found else None

    def _write(self) -> str:
        table = render(self._results, [case.name for case in self.cases])
        write_json(self._out / "results.json", {"results": self._results})
        write_atomically(self._out / "table.md", table.encode())
        return table


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_results(file: Path) -> list[Record]:
    """The results in `file`; none if it is not there.

    Raises:
        BadInput: the file cannot be read.
    """
    if not file.exists():
        return []
    try:
        results = json.loads(file.read_text())["results"]
        return [
            {**record, "case": record["case"], "status": record["status"]} for record in results
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not a file of results ({error}): move it away") from None


def _measure(module: str, name: str, device: str, size: str, running: Path) -> None:
    """Run one case in this process; its figures go to `running` as they come."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed runner leaves no process
    record = json.loads(running.read_text())
    try:
        (case,) = (c for c in importlib.import_module(module).CASES if c.name == name)
        for figures in case.measure(device=device, smoke=size == "smoke", **case.arguments):
            print(dict(figures), flush=True)
            more = {**record, "figures": {**record["figures"], **figures}}
            write_json(running, more)  # refuses NaN: then the figures before it stay
            record = more
        record["status"] = "measured"
    except Exception as error:
        traceback.print_exc()
        first_line = (str(error).strip().splitlines() or [""])[0]
        record |= {"status": "failed", "error": f"{type(error).__name__}: {first_line}"[:300]}
    write_json(running, record)


if __name__ == "__main__":
    _measure(*sys.argv[1:5], Path(sys.argv[5]))
    sys.stdout.flush()
    # The result is on disk: what NCCL, CUDA or threads do at an interpreter's end must not delay
    # the next case.
    os._exit(0)
