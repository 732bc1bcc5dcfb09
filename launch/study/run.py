"""`sparsebert compare`: the runs of a study that are missing, several at once, and its table.

Each run is a `sparsebert finetune --local` in a process of its own; what is finished is not run
again, and an interrupted run goes on from its checkpoint.
"""

import functools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bert.origins import source_fingerprint
from bert.tasks.config import TaskConfig
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.history import check_unchanged
from bert.tasks.scores import read_results
from bert.tasks.splits import TaskData, load_task
from distributed.errors import BadInput
from launch.progress import StatusLine, make_console
from launch.study.plan import (
    StudyConfig,
    StudyRun,
    choose_rates,
    final_runs,
    finetune_overrides,
    grid_runs,
    load_finetune,
    mean_dev_score,
)
from launch.study.report import build_rows, write_report
from training.folder import run_folder_of
from training.stopping import STOPPED_EXIT_CODE


class StudyStopped(Exception):
    """A run was asked to stop, and did."""


def compare(study: StudyConfig, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Run what is missing and write the tables; their rows.

    Raises:
        BadInput: a configuration is wrong, before anything runs; or a run refuses its input.
        StudyStopped: a signal stopped a run.
    """
    _check_all(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    check = _build_check()
    chosen: dict[str, dict[str, float]] = {task: {} for task in study.tasks}
    read_before: dict[str, str] = {}
    final: list[StudyRun] = []
    rows: list[dict[str, Any]] = []

    def report() -> None:
        there = {run: found for run in final if (found := _results(study, run)) is not None}
        rows[:] = build_rows(study, chosen, there)
        begun = {(run.task, run.model) for run in final}
        later = len(study.tasks) * len(study.models) - len(begun)  # at least
        write_report(study, rows, missing=len(final) - len(there) + later)

    for models in study.stages:
        grid = list(grid_runs(study, models, chosen))
        _complete(study, grid, "grid", quiet, check, read_before, lambda: None)
        dev_scores = {run: mean_dev_score(_results(study, run) or []) for run in grid}
        for task, rates in choose_rates(study, models, dev_scores).items():
            chosen[task] |= rates
        runs = final_runs(study, models, chosen)
        final += runs
        _complete(study, runs, "final", quiet, check, read_before, report)
    report()
    return rows


def _check_all(study: StudyConfig) -> None:
    """See that each configuration is valid and each model there.

    Raises:
        BadInput: one is not.
    """
    models = list(study.models)
    # Which rates dev will choose is not known yet: any will do.
    any_rates = {task: dict.fromkeys(models, study.grid(task)[0]) for task in study.tasks}
    for run in (*grid_runs(study, models, any_rates), *final_runs(study, models, any_rates)):
        config = load_finetune(study, run)
        if not config.model.init_from.exists():
            raise BadInput(
                f"models.{run.model}.init_from: {config.model.init_from} does not exist: train "
                "it first"
            )


def _results(study: StudyConfig, run: StudyRun) -> list[dict[str, Any]] | None:
    """The results of all seeds of the run; None if one is missing."""
    config = load_finetune(study, run)
    found = [read_results(run_folder_of(config.for_seed(seed))) for seed in run.seeds]
    whole = [r for r in found if r is not None]
    if len(whole) < len(found):
        return None
    needs_test = run.score_test and config.task.test is not None
    return None if needs_test and any(r["test"] is None for r in whole) else whole


def _build_check() -> Callable[[FinetuneConfig], bool]:
    """`check_unchanged` that reads each model and each task once, whatever number of runs."""
    found: dict[str, TaskData] = {}

    def read_data(task: TaskConfig) -> TaskData:
        key = task.model_dump_json()
        if key not in found:
            found[key] = load_task(task).without_examples()
        return found[key]

    return functools.partial(
        check_unchanged,
        fingerprint_of_model=functools.cache(source_fingerprint),
        read_data=read_data,
    )


def _complete(
    study: StudyConfig,
    runs: Sequence[StudyRun],
    label: str,
    quiet: bool,
    check: Callable[[FinetuneConfig], bool],
    read_before: dict[str, str],
    after_each: Callable[[], object],
) -> None:
    """Run those that have no results yet, `study.parallel` at once.

    `read_before` remembers, for each task, a finished run that read its files by earlier rules.

    Raises:
        BadInput: what is there was made with another configuration or another model, or scores of
            a task read by two sets of rules would stand side by side.
    """
    for run in runs:
        config = load_finetune(study, run)
        for seed in run.seeds:
            if not check(config.for_seed(seed)):
                read_before[run.task] = run.name
    missing = [run for run in runs if _results(study, run) is None]
    for run in missing:
        if run.task in read_before:
            raise BadInput(
                f"{run.name} is still to be run, and {read_before[run.task]} read the files of the "
                f"task {run.task} under earlier rules, which give other examples: give the study "
                "another name, so that all its runs read the same"
            )
    done = len(runs) - len(missing)
    console = make_console(stderr=quiet)
    runs_now = _RunningProcesses()
    devices: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for place in range(study.parallel):
        devices.put(study.gpus[place % len(study.gpus)] if study.gpus else None)
    with (
        runs_now.told_of_signals(),
        StatusLine(f"{study.name} {label}", total=len(runs), console=console) as line,
        ThreadPoolExecutor(study.parallel) as pool,
    ):
        line.show(f"{label}: {done} of {len(runs)} runs are there", done=done, important=True)
        jobs = {run: pool.submit(_run_one, study, run, devices, runs_now) for run in missing}
        try:
            for run, job in jobs.items():
                job.result()
                done += 1
                after_each()
                line.show(f"{label}: {done} of {len(runs)}, {run.name}", done=done, important=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _RunningProcesses:
    """The runs of the moment: a signal to the study is one to each of them, and none follows."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the signal may come while it is held
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._signal: int | None = None

    @property
    def are_signalled(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @contextmanager
    def told_of_signals(self) -> Iterator[None]:
        """While inside, SIGINT and SIGTERM go to the runs, which save and stop. Main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(self, command: Sequence[str], **options: Any) -> int:
        """The exit code of `command`; as if it had stopped if a signal came before."""
        with self._lock:
            if self._signal is not None:
                return STOPPED_EXIT_CODE
            process = subprocess.Popen(command, **options)
            self._processes.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        with self._lock:
            self._signal = number
            for process in self._processes:
                process.send_signal(number)


def _run_one(
    study: StudyConfig,
    run: StudyRun,
    devices: "queue.SimpleQueue[int | None]",
    runs_now: _RunningProcesses,
) -> None:
    """One run in a process of its own; its output goes to the study's folder."""
    device = devices.get()
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(device)
    log = study.folder / f"{run.name}.log"
    command = [sys.executable, "-m", "launch", "finetune", str(study.tasks[run.task].config)]
    try:
        with open(log, "ab") as out:
            code = runs_now.run(
                [*command, *finetune_overrides(study, run), "--local"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )
    finally:
        devices.put(device)
    if code == STOPPED_EXIT_CODE or (code and runs_now.are_signalled):
        raise StudyStopped(f"{run.name} is stopped and saved: the same command goes on")
    if code == 2:
        raise BadInput(f"{run.name}: {_last_line(log).removeprefix('error: ')}")
    if code:
        raise RuntimeError(f"{run.name} ended with exit code {code}: see {log}")


def _last_line(log: Any) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return str(lines[-1]) if lines else "it said nothing"
