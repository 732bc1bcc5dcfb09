"""This process as one of a run's workers: process group, log, threads and watchdog."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from distributed.world import Topology, detect_topology, ensure_process_group
from training.config import LaunchConfig
from training.events import append_event
from training.folder import RunFolder
from training.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerProcess:
    """This process as one of a run's workers."""

    topology: Topology
    folder: RunFolder

    def tell(self, kind: str, message: str) -> None:
        """Record an event that all ranks know of, once."""
        if self.topology.is_first:
            append_event(self.folder.events_file, kind, message)


@contextmanager
def worker_process(
    launch: LaunchConfig, folder: RunFolder, *, use_gpu: bool
) -> Iterator[WorkerProcess]:
    """Collective: join the process group and log to the run folder, failures too."""
    topology = detect_topology(use_gpu=use_gpu)
    ensure_process_group(topology)
    log_to_file(folder.logs / f"worker-{topology.rank}.log")
    if topology.device.type == "cpu":
        torch.set_num_threads(max(1, int(launch.cpus_per_worker)))
    try:
        yield WorkerProcess(topology, folder)
    except Exception:
        log.exception("worker %d failed", topology.rank)
        raise


@contextmanager
def watched(
    process: WorkerProcess, hang_seconds: float, stop_requested: Callable[[], bool]
) -> Iterator[tuple[Callable[[], bool], Callable[[], None]]]:
    """While inside, end this process when it makes no step for `hang_seconds`.

    Yields:
        `stop_requested`, wrapped: a call after each step counts as progress; and a function to call
        during other long work.
    """
    rank = process.topology.rank
    watchdog = Watchdog(
        hang_seconds,
        stacks=process.folder.logs / f"hang-{rank}.log",
        tell=lambda message: append_event(
            process.folder.events_file, "hang", f"worker {rank}: {message}"
        ),
    )

    def asked_after_step() -> bool:
        watchdog.beat()
        return stop_requested()

    try:
        yield asked_after_step, watchdog.beat
    finally:
        watchdog.stop()


def log_to_file(file: Path) -> None:
    """Send this process's log, DeepSpeed's and the warnings to `file`, off the terminal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, logging.FileHandler)]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("launch", "bert", "training", "sparsity", "distributed"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
