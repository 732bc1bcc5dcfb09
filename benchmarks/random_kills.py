"""Kills a training run at random, again and again, and checks that nothing of it shows at the end.

    python benchmarks/random_kills.py --kills 25 --stages 0 1 2 3 --out benchmarks/results

For each ZeRO stage: one run that nothing disturbs, and one whose processes get SIGKILL (a worker,
all workers, the driver, the raylet; with --local the one process) at random moments. A killed
driver is started again, as a supervisor would; a lost worker is left to Ray Train. At the end both
runs' last checkpoints must have the same files (size, SHA-256: weights, moments, masks), and their
logs the same figures by step, times aside. Needs the shards that `make demo` or `sparsebert
prepare` writes; everything else is made in a temporary folder.

Recovery is the time from a kill to the first step that a new start logs and no earlier one had: it
includes finding the loss, starting processes, importing, reading the checkpoint and repeating the
steps since. (Workers whose driver was killed log on for a while; their steps do not count.)
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("throughput/", "memory/", "time", "seconds")
WAIT_SECONDS = 300.0
STOPPED, DONE = 75, 0


class Run:
    """One run's command, started as often as need be."""

    def __init__(self, config: Path, folder: Path, name: str, options: list[str]) -> None:
        self.folder = folder / name
        self._log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "launch", "pretrain", str(config), f"name={name}"]
        self._command += [f"launch.runs_dir={folder}", *options]
        self.process: psutil.Popen | None = None
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        with open(self._log, "a") as log:
            self.process = psutil.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**env, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def poll(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def processes(self, word: str) -> list[psutil.Process]:
        assert self.process is not None
        found = []
        for process in self.process.children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def records(self) -> list[dict[str, Any]]:
        try:
            lines = (self.folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def claim(self) -> str:
        """The word of the newest start; "" before the first."""
        try:
            word = json.loads((self.folder / "checkpoints" / "attempt.json").read_bytes())
        except FileNotFoundError:
            return ""
        return str(word["attempt"])

    def last_step(self) -> int:
        return max((record["step"] for record in self.records()), default=0)

    def tail(self) -> str:
        return self._log.read_text()[-2000:]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for process in [*self.process.children(recursive=True), self.process]:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            self.process.wait(30)


def choose_victims(run: Run, dice: random.Random, *, local: bool) -> tuple[str, list[Any]]:
    assert run.process is not None
    if local:
        return "process", [run.process]
    kind = dice.choices(["worker", "all workers", "driver", "raylet"], weights=[4, 2, 2, 2])[0]
    workers = run.processes("RayTrainWorker")
    if kind == "worker" and workers:
        return kind, [dice.choice(workers)]
    if kind == "all workers" and workers:
        return kind, workers
    if kind == "raylet" and (raylets := run.processes("raylet/raylet")):
        return kind, raylets
    return "driver", [run.process]


def kill(victims: list[Any]) -> None:
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def disturb(run: Run, total_steps: int, kills: int, dice: random.Random, *, local: bool) -> Any:
    """Run to the end with that many kills on the way; what each did."""
    events: list[dict[str, Any]] = []
    run.start()
    high = 0  # the last step that was ever logged
    while len(events) < kills:
        target = high + 1
        await_step(run, target)
        time.sleep(dice.uniform(0.0, 1.0))
        if run.poll() == DONE:
            break
        high = max(high, run.last_step())
        if high >= total_steps - 3:
            break
        kind, victims = choose_victims(run, dice, local=local)
        before, began = run.claim(), time.monotonic()
        kill(victims)
        high = max(high, await_new_start(run, before))
        await_step(run, high + 1)
        seconds = time.monotonic() - began
        events.append({"victim": kind, "at_step": high, "recovery_seconds": round(seconds, 2)})
        high = max(high, run.last_step())
        print(f"{run.folder.name}: {len(events)}/{kills} {events[-1]}", flush=True)
    await_end(run)
    return events


def await_new_start(run: Run, before: str) -> int:
    """Until another start has taken over; the last step that was logged until then."""
    deadline = time.monotonic() + WAIT_SECONDS
    high = 0
    while run.claim() == before:
        high = max(high, run.last_step())
        if run.poll() not in (None, DONE):
            run.start()
        if run.poll() == DONE or time.monotonic() > deadline:
            raise TimeoutError(f"no new start in {WAIT_SECONDS} s:\n{run.tail()}")
        time.sleep(0.05)
    return high


def await_step(run: Run, step: int) -> None:
    """Until that step is logged, starting the command again whenever it has ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while run.last_step() < step:
        if (code := run.poll()) is not None:
            if code == DONE:
                return
            run.start()
        if time.monotonic() > deadline:
            raise TimeoutError(f"step {step} did not come in {WAIT_SECONDS} s:\n{run.tail()}")
        time.sleep(0.05)


def await_end(run: Run) -> None:
    deadline = time.monotonic() + 4 * WAIT_SECONDS
    while (code := run.poll()) != DONE:
        if code is not None:
            run.start()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no end:\n{run.tail()}")
        time.sleep(0.2)


def find_differences(run: Run, reference: Run, step: int) -> list[str]:
    manifests = [
        json.loads((r.folder / f"checkpoints/step-{step:08d}/manifest.json").read_bytes())
        for r in (run, reference)
    ]
    found = [
        f"checkpoint: {key}"
        for key in ("files", "step", "optimizer_steps", "world_size")
        if manifests[0][key] != manifests[1][key]
    ]
    found += [
        f"checkpoint state: {key}"
        for key in ("train", "sparsity", "identity")
        if manifests[0]["state"][key] != manifests[1]["state"][key]
    ]
    ours, theirs = (
        [
            {k: v for k, v in record.items() if not any(word in k for word in MEASURED)}
            for record in r.records()
        ]
        for r in (run, reference)
    )
    if [record["step"] for record in ours] != list(range(1, step + 1)):
        found.append("metrics: not each step once")
    return found + [
        f"metrics of step {a['step']}" for a, b in zip(ours, theirs, strict=False) if a != b
    ]


def write_config(folder: Path, data: Path, *, steps: int, stage: int, workers: int) -> Path:
    config = {
        "name": "run",
        "seed": 3,
        "model": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "vocab": str(ROOT / "samples" / "vocab.txt"),
        },
        "data": {"shards": str(data), "max_seq_len": 64, "row_tokens": 64},
        "train": {
            "total_steps": steps,
            "global_batch_rows": 4,
            "micro_batch_rows": 2,
            "learning_rate": 1e-3,
            "hidden_dropout": 0.1,
            "precision": "fp32",
            "log_interval_steps": 1,
        },
        "zero": {"stage": stage},
        "sparsity": {
            "final_sparsity": 0.8,
            "prune_start_step": 2,
            "prune_end_step": steps * 3 // 4,
            "prune_interval_steps": 5,
        },
        "checkpoint": {"interval_steps": 10, "keep_last": 2},
        "launch": {"num_workers": workers, "use_gpu": False, "max_failures": 1000},
    }
    file = folder / f"stage-{stage}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def summarise(events: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for kind in sorted({event["victim"] for event in events}):
        times = sorted(e["recovery_seconds"] for e in events if e["victim"] == kind)
        summary[kind] = {
            "kills": len(times),
            "median_seconds": round(statistics.median(times), 1),
            "worst_seconds": times[-1],
        }
    return summary


def write_report(results: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "kills": sum(result["kills"] for result in results),
        "different": sum(bool(result["differences"]) for result in results),
        "stages": results,
    }
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        mode = "local" if options.local else "ray"
        file = options.out / f"{report['date']}-random-kills-{mode}.json"
        file.write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each stage")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "wikipedia")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--local", action="store_true", help="one process, without Ray")
    parser.add_argument("--out", type=Path, help="a folder for the result as JSON")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/tmp") as temporary:
        folder = Path(temporary)
        for stage in options.stages:
            workers = 1 if options.local else options.workers
            config = write_config(
                folder, options.data.resolve(), steps=options.steps, stage=stage, workers=workers
            )
            more = ["--local"] if options.local else []
            reference = Run(config, folder, f"reference-{stage}", more)
            run = Run(config, folder, f"disturbed-{stage}", more)
            try:
                reference.start()
                await_end(reference)
                dice = random.Random(options.seed * 1000 + stage)
                events = disturb(run, options.steps, options.kills, dice, local=options.local)
                differences = find_differences(run, reference, options.steps)
            finally:
                reference.stop()
                run.stop()
            results.append(
                {
                    "stage": stage,
                    "kills": len(events),
                    "starts": run.starts,
                    "differences": differences,
                    "recovery": summarise(events),
                    "events": events,
                }
            )
            print(f"stage {stage}: {len(events)} kills, differences: {differences or 'none'}")
            report = write_report(results, options)  # after each stage: an hour is long
    print(json.dumps({k: v for k, v in report.items() if k != "stages"}))
    return 1 if report["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
