"""Training without Ray: one process, or torchrun's. The same worker function as under Ray.

    sparsebert pretrain configs/demo_general.yaml --local
    torchrun --nproc-per-node 2 -m launch pretrain configs/demo_general.yaml

Only the first process writes to the terminal.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import torch.distributed as dist

from distributed.collectives import broadcast_json
from distributed.errors import BadInput, Unrecoverable
from distributed.topology import (
    Topology,
    detect_topology,
    ensure_process_group,
    has_gpu_for_each_process,
)
from launch.configuration import PretrainConfig
from launch.lease import refuse_if_held
from launch.progress import ProgressDisplay, follow_metrics
from launch.run_folder import run_folder_of
from launch.run_setup import RunPlan, begin_run, check_run, hold_run
from launch.stopping import STOPPED_EXIT_CODE, report_end, signals_request_stop
from launch.worker import run_pretraining


def pretrain_locally(config: PretrainConfig) -> int:
    """Collective: train in this process, with those that torchrun started beside it; the exit code.

    Raises:
        BadInput: in the first process; the others leave with the same exit code and no words.
    """
    use_gpu = config.launch.use_gpu
    if use_gpu == "auto":
        use_gpu = has_gpu_for_each_process()
    topology = detect_topology(use_gpu=use_gpu)
    ensure_process_group(topology)
    with ExitStack() as held:
        try:
            return _train_held(config, topology, held, use_gpu=use_gpu)
        except Unrecoverable as error:
            if topology.is_first:
                print(f"error: {error} (logs: {run_folder_of(config).logs})", file=sys.stderr)
            return 1


def _train_held(
    config: PretrainConfig, topology: Topology, held: ExitStack, *, use_gpu: bool
) -> int:
    plan = _agree_on_plan(config, topology, held)
    folder, total = run_folder_of(config), config.train.total_steps
    finished_steps = plan.finished_steps
    if finished_steps < total:
        with (
            signals_request_stop(folder.stop_file, say=topology.is_first),
            _progress(config, plan, show=topology.is_first),
        ):
            finished_steps = run_pretraining(
                config,
                identity=plan.identity,
                init_from=plan.source,
                use_gpu=use_gpu,
                stop_requested=folder.stop_file.exists,
            ).step
    dist.destroy_process_group()
    if topology.is_first:
        return report_end(folder, finished_steps, total)
    return 0 if finished_steps >= total else STOPPED_EXIT_CODE


def _agree_on_plan(config: PretrainConfig, topology: Topology, held: ExitStack) -> RunPlan:
    """Collective: rank 0 checks and holds the run; what it finds, good or bad, is for all."""
    answer: dict[str, object] = {}
    if topology.is_first:
        try:
            answer = {"plan": asdict(_set_up(config, topology.world_size, held))}
        except BadInput as error:
            answer = {"error": str(error)}
    answer = broadcast_json(answer)
    if "error" in answer:
        if topology.is_first:
            raise BadInput(str(answer["error"]))
        raise SystemExit(2)
    return RunPlan(**answer["plan"])  # type: ignore[arg-type]


def _set_up(config: PretrainConfig, world_size: int, held: ExitStack) -> RunPlan:
    if config.train.global_batch_rows < world_size:
        raise BadInput(
            f"train.global_batch_rows ({config.train.global_batch_rows}) is below the number of "
            f"processes ({world_size}): each needs a row of every batch"
        )
    folder = run_folder_of(config)
    refuse_if_held(folder.path)
    plan = check_run(config)
    if plan.finished_steps < config.train.total_steps:
        held.enter_context(hold_run(folder))
        begin_run(config, plan)
    return plan


@contextmanager
def _progress(config: PretrainConfig, plan: RunPlan, *, show: bool) -> Iterator[None]:
    """Meanwhile, a thread brings the metrics to the display."""
    if not show:
        yield
        return
    finished = threading.Event()

    def follow() -> None:
        with ProgressDisplay(
            config.train.total_steps, start_step=plan.finished_steps, label=config.name
        ) as display:
            follow_metrics(
                run_folder_of(config).metrics_file, stop=finished, on_record=display.update
            )

    follower = threading.Thread(target=follow, name="progress")
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()
