"""Measures how long a run takes to start: from the command to its first step, and to its end.

    make setup && make demo     # once: the demo's shards
    python benchmarks/start_time.py --repeats 5 --peer ../before --out benchmarks/results

Each start is the command of a user, `pretrain configs/demo_general.yaml` for a few steps, in a new
run folder. It is watched from outside, so another checkout (`--peer`) is measured in the same way
and in turn with this one: the machine is then as busy for both. What is seen:

    cluster     the command has been imported and says that it starts a cluster
    checks      ... that it starts workers: Ray runs, and data and configuration are checked
    controller  Ray Train's controller is there
    workers     the last training process is there
    imported    the last worker has opened its log: all is imported, the process group is joined
    restored    ... says what it starts from: the model is built
    first step  its figures are in metrics.jsonl
    last step   ... those of the last one
    end         the command has ended

CPU seconds are those of all processes of the start, as far as a look every fifth of a second sees
them. They depend less on what else the machine does than the seconds.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PHASES = (
    ("cluster", "command's imports"),
    ("checks", "Ray's start, checks"),
    ("controller", "controller"),
    ("workers", "worker processes"),
    ("imported", "imports in workers"),
    ("restored", "model"),
    ("first step", "engine, first step"),
    ("last step", "further steps"),
    ("end", "end"),
)
LOOK_SECONDS = 0.05
PROCESSES_SECONDS = 0.2
WAIT_SECONDS = 300.0
CLOCK = os.sysconf("SC_CLK_TCK")


class Watch:
    """One start, seen from outside: when what was there first, and what it cost."""

    def __init__(self, checkout: Path, run: Path, options: list[str], folder: Path) -> None:
        self._run = run
        self._out = folder / f"{run.name}.out"
        self._next_processes = 0.0
        self.times: dict[str, float] = {}
        self.processes: dict[int, dict[str, Any]] = {}
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TORCHELASTIC_"))}
        command = [sys.executable, "-m", "launch", "pretrain", *options]
        with open(self._out, "wb") as out:
            self._began = time.monotonic()
            self._process = psutil.Popen(
                command,
                cwd=checkout,
                env={**env, "PYTHONPATH": str(checkout)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def to_the_end(self, steps: int) -> None:
        """Look until the command has ended.

        Raises:
            RuntimeError: it failed, or took too long.
        """
        try:
            while self._process.poll() is None:
                if time.monotonic() - self._began > WAIT_SECONDS:
                    raise RuntimeError(f"no end in {WAIT_SECONDS} s:\n{self._out.read_text()}")
                self._look(steps)
                time.sleep(LOOK_SECONDS)
            self._see("end", there=True)
            self._look(steps)
        finally:
            self._stop()
        if self._process.returncode != 0:
            raise RuntimeError(f"exit code {self._process.returncode}:\n{self._out.read_text()}")

    @property
    def cpu_seconds(self) -> float:
        return sum(process["cpu"] for process in self.processes.values())

    def _look(self, steps: int) -> None:
        if time.monotonic() >= self._next_processes:
            self._look_at_processes()
            self._next_processes = time.monotonic() + PROCESSES_SECONDS
        out = self._out.read_bytes()
        self._see("cluster", there=b"starting a local Ray cluster" in out)
        self._see("checks", there=b"worker(s)" in out)
        names = [process["name"] for process in self.processes.values()]
        self._see("controller", there=any("TrainController" in name for name in names))
        ready = sum("RayTrainWorker" in name for name in names)
        logs = list(self._run.glob("logs/worker-*.log"))
        workers = max(ready, len(logs))
        self._see("workers", there=workers > 1)
        opened = len(logs) > 1 or (bool(logs) and "cluster" not in self.times)
        self._see("imported", there=opened)
        told = all(b"starting from" in log.read_bytes() for log in logs)
        self._see("restored", there=opened and told)
        metrics = self._run / "metrics.jsonl"
        written = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        self._see("first step", there=written >= 1)
        self._see("last step", there=written >= steps)

    def _see(self, what: str, *, there: bool) -> None:
        if there:
            self.times.setdefault(what, round(time.monotonic() - self._began, 3))

    def _look_at_processes(self) -> None:
        """Processes of the command's session, and those that Ray started in their own."""
        ours = {self._process.pid, *self.processes}
        for entry in os.scandir("/proc"):
            if not entry.name.isdecimal():
                continue
            try:
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                pid, parent = int(entry.name), int(stat[1])
                if pid not in ours and parent not in ours:
                    continue
                words = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ")
            except (OSError, IndexError):
                continue
            ours.add(pid)
            cpu = (int(stat[11]) + int(stat[12])) / CLOCK
            seen = self.processes.setdefault(
                pid, {"at": round(time.monotonic() - self._began, 2), "name": "", "cpu": 0.0}
            )
            seen["cpu"] = max(seen["cpu"], cpu)
            name = _name(words.decode(errors="replace"))
            if name and name != "ray::IDLE" or not seen["name"]:
                seen["name"] = name or seen["name"]

    def _stop(self) -> None:
        """End what is left, which is only something where the start failed."""
        for pid in self.processes:
            try:
                process = psutil.Process(pid)
                if process.create_time() >= time.time() - 2 * WAIT_SECONDS:
                    process.kill()
            except psutil.Error:
                continue
        self._process.wait(30)


def _name(words: str) -> str:
    """What a process is, in a word or two."""
    if words.startswith("ray::"):
        return words.split()[0].removesuffix("()")
    found = re.search(r"(gcs_server|raylet/raylet|\w+\.py|-m \S+)", words)
    return found[1] if found else words.split(" ")[0].rpartition("/")[2]


def measure(checkout: Path, options: argparse.Namespace, folder: Path, number: int) -> Watch:
    run = folder / f"{checkout.name}-{number}"
    config = [str(options.config), f"name={run.name}", f"launch.runs_dir={folder}"]
    config += [f"train.total_steps={options.steps}", "train.log_interval_steps=1"]
    config += ["train.warmup_steps=1", "sparsity.prune_start_step=1"]
    config += [f"sparsity.prune_end_step={options.steps - 2}", "sparsity.prune_interval_steps=1"]
    if options.data is not None:
        sets = {name: str(options.data / f"{name}-validation") for name in ("wikipedia", "pubmed")}
        config += [f"data.shards=[{options.data / 'wikipedia'},{options.data / 'books'}]"]
        config += [f"evaluation.sets={json.dumps(sets)}"]
    config += ["--local"] if options.local else []
    watch = Watch(checkout, run, [*config, *options.override], folder)
    watch.to_the_end(options.steps)
    return watch


def table(watches: dict[str, list[Watch]]) -> list[str]:
    """A row a phase: the median time at its end, and for this checkout its own seconds."""
    names = list(watches)
    header = ["phase", *(f"{name}: at its end, s" for name in names), f"{names[0]}: it took, s"]
    rows = [header, ["---"] * len(header)]
    before = 0.0
    for key, words in PHASES:
        medians = [_median(each, key) for each in watches.values()]
        if medians[0] is None:
            continue
        rows.append([words, *_cells(medians), f"{medians[0] - before:.1f}"])
        before = medians[0]
    costs = [statistics.median(w.cpu_seconds for w in each) for each in watches.values()]
    rows.append(["CPU seconds", *_cells(costs), ""])
    counts = [statistics.median(len(w.processes) for w in each) for each in watches.values()]
    rows.append(["processes", *(f"{count:g}" for count in counts), ""])
    return [f"| {' | '.join(row)} |" for row in rows]


def _cells(values: list[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.1f}" for value in values]


def _median(watches: list[Watch], key: str) -> float | None:
    times = [watch.times[key] for watch in watches if key in watch.times]
    return statistics.median(times) if times else None


def show_processes(watch: Watch) -> None:
    for pid, process in sorted(watch.processes.items(), key=lambda item: item[1]["at"]):
        print(f"  {process['at']:6.2f} s  {process['cpu']:6.2f} CPU s  {process['name']}  ({pid})")


def describe(options: argparse.Namespace) -> dict[str, Any]:
    packages = ("torch", "deepspeed", "ray", "transformers")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "repeats": options.repeats,
        "steps": options.steps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("override", nargs="*", help="field=value, for every start")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo_general.yaml")
    parser.add_argument("--data", type=Path, help="a folder with the demo's shards (data)")
    parser.add_argument("--peer", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--local", action="store_true", help="one process, without Ray")
    parser.add_argument("--processes", action="store_true", help="list those of each start")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, help="a folder for the result")
    options = parser.parse_args()
    checkouts = {"this": ROOT} | ({"peer": options.peer.resolve()} if options.peer else {})
    watches: dict[str, list[Watch]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory(prefix="starts-", dir="/tmp") as temporary:
        for number in range(options.repeats):
            for name, checkout in checkouts.items():
                folder = Path(temporary) / name
                folder.mkdir(exist_ok=True)
                watch = measure(checkout, options, folder, number)
                watches[name].append(watch)
                if not options.json:
                    figures = " ".join(f"{what} {at:.1f}" for what, at in watch.times.items())
                    print(f"{name} {number}: {figures} CPU {watch.cpu_seconds:.1f}", flush=True)
                if options.processes:
                    show_processes(watch)
    lines = table(watches)
    report = describe(options) | {
        name: [{"times": w.times, "cpu_seconds": round(w.cpu_seconds, 2)} for w in each]
        for name, each in watches.items()
    }
    print(json.dumps(report) if options.json else "\n".join(lines))
    if options.out is not None:
        kind = "start-local" if options.local else "start"
        file = options.out / f"{report['date']}-{kind}.json"
        file.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
