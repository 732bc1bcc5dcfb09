"""Training without Ray: one process, or torchrun's. The same worker function as under Ray.

sparsebert pretrain configs/demo_general.yaml --local
torchrun --nproc-per-node 2 -m launch pretrain configs/demo_general.yaml --local
"""

import sys
import threading
from dataclasses import asdict

from distributed.collectives import broadcast_json
from distributed.errors import BadInput
from distributed.topology import detect_topology, ensure_process_group
from launch.configuration import PretrainConfig
from launch.progress import ProgressDisplay, follow_metrics
from launch.run_folder import run_folder_of
from launch.run_setup import RunPlan, set_up_run
from launch.stopping import STOPPED_EXIT_CODE, signals_request_stop
from launch.worker import run_pretraining


def pretrain_locally(config: PretrainConfig) -> int:
    """Collective: train in this process, with those that torchrun started beside it; the exit code."""
    topology = detect_topology()
    ensure_process_group(topology)
    if config.train.global_batch_rows < topology.world_size:
        raise BadInput(
            f"train.global_batch_rows ({config.train.global_batch_rows}) is below the number of "
            f"processes ({topology.world_size})"
        )
    plan = _agree_on_plan(config, is_first=topology.is_first)
    folder = run_folder_of(config)
    if plan.finished_steps >= config.train.total_steps:
        if topology.is_first:
            print(f"{folder.path} is complete: {plan.finished_steps} steps", flush=True)
        return 0
    finished = threading.Event()
    follower = None
    if topology.is_first:
        follower = threading.Thread(target=_show_progress, args=(config, plan, finished))
        follower.start()
    try:
        with signals_request_stop(folder.stop_file):
            state = run_pretraining(
                config,
                identity=plan.identity,
                init_from=plan.source,
                stop_requested=folder.stop_file.exists,
            )
    finally:
        finished.set()
        if follower is not None:
            follower.join()
    sys.stdout.flush()
    return 0 if state.step >= config.train.total_steps else STOPPED_EXIT_CODE


def _agree_on_plan(config: PretrainConfig, *, is_first: bool) -> RunPlan:
    """Collective: rank 0 checks the run; what it finds, good or bad, holds for all."""
    answer: dict[str, object] = {}
    if is_first:
        try:
            answer = {"plan": asdict(set_up_run(config))}
        except BadInput as error:
            answer = {"error": str(error)}
    answer = broadcast_json(answer)
    if "error" in answer:
        raise BadInput(str(answer["error"]))
    return RunPlan(**answer["plan"])  # type: ignore[arg-type]


def _show_progress(config: PretrainConfig, plan: RunPlan, finished: threading.Event) -> None:
    folder = run_folder_of(config)
    with ProgressDisplay(
        config.train.total_steps, start_step=plan.finished_steps, label=config.name
    ) as display:
        follow_metrics(folder.metrics_file, stop=finished, on_record=display.update)
