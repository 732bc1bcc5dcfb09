"""What pretraining and fine-tuning share in a worker: its process, its starts and its engine.

    worker_process           log, threads and process group
    watched                  the watchdog, from the first attempt on
    train_and_return         one attempt after another, as long as training goes back
    build_restored_engine    weights, moments and masks as a start says

How a run is saved stands in saving.py.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bert.configuration import TrainConfig
from bert.loss_spikes import SpikeDetector
from bert.numbers import GoBack
from bert.restoring import Start, fill_module, restore_engine
from bert.weights import is_prunable, named_weights, uses_weight_decay
from distributed.config import ZeroConfig
from distributed.fencing import check_claim
from distributed.topology import Topology, detect_topology, ensure_process_group
from distributed.zero import Engine, build_engine
from launch.attempt import Attempt, agree_on_attempt
from launch.configuration import LaunchConfig
from launch.run_events import append_event
from launch.run_folder import RunFolder, read_metrics
from launch.watchdog import Watchdog
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig

log = logging.getLogger(__name__)
Result = TypeVar("Result")


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
        `stop_requested`, to be asked after each step: that is how the steps are seen; and what to
        call on the way through other work that may take as long.
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


def train_and_return(
    process: WorkerProcess, train_from: Callable[[Attempt], Result], *, most_returns: int
) -> Result:
    """Collective: train, going back to the last checkpoint as often as training asks for it.

    Args:
        process: this one.
        train_from: builds everything, restores what the attempt says and trains.
        most_returns: how many times a run may go back.
    """
    next_batch = None
    while True:
        attempt = agree_on_attempt(
            process.folder, process.topology, next_batch=next_batch, most_returns=most_returns
        )
        try:
            return train_from(attempt)
        except GoBack as request:
            next_batch = request.next_batch


def pass_over(start: Start, attempt: Attempt) -> Start:
    """`start` with the batches left out that the attempt passes over."""
    if attempt.batch_offset is None:
        return start
    return replace(start, state=replace(start.state, batch_offset=attempt.batch_offset))


def guard_figures(
    process: WorkerProcess, attempt: Attempt, *, loss_name: str
) -> Callable[[Mapping[str, Any]], None]:
    """What the rank that writes the figures does before each record of them."""
    spikes = SpikeDetector()
    for record in read_metrics(process.folder.metrics_file):  # resumed, it judges as if it went on
        spikes.look(record.get(loss_name))

    def before_record(record: Mapping[str, Any]) -> None:
        # A group that was cut off and trains on alone must not write into its successor's figures.
        check_claim(process.folder.checkpoints, attempt.word)
        if loss_name in record and (found := spikes.look(record[loss_name])):
            process.tell("spike", f"step {record['step']}: {found}")

    return before_record


def build_restored_engine(
    module: nn.Module,
    start: Start,
    *,
    train: TrainConfig,
    zero: ZeroConfig,
    sparsity: SparsityConfig | None,
    accumulation_steps: int,
    device: torch.device,
) -> tuple[Engine, SparsityController | None]:
    """Collective: an engine around `module` that holds exactly what `start` says."""
    fill_module(module, start)
    weights = named_weights(module)
    engine = build_engine(
        module,
        named_parameters=weights,
        no_decay=[name for name, _ in weights if not uses_weight_decay(name)],
        zero=zero,
        precision=train.precision,
        betas=train.betas,
        eps=train.adam_eps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        micro_batch_rows=train.micro_batch_rows,
        accumulation_steps=accumulation_steps,
        device=device,
    )
    controller = None
    if sparsity is not None:
        controller = SparsityController(
            sparsity,
            engine.partition,
            prunable=[name for name, _ in weights if is_prunable(name) or name in start.masked],
            optimizer=engine.deepspeed_engine.basic_optimizer,
        )
    restore_engine(engine, start, controller)
    return engine, controller


def log_to_file(file: Path) -> None:
    """Send this process's log, DeepSpeed's and the warnings to `file`, off the terminal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, logging.FileHandler)]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("launch", "bert", "sparsity", "distributed"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
