"""Training without Ray: one process, or torchrun's. The same worker function as under Ray.

    sparsebert pretrain configs/demo_general.yaml --local
    torchrun --nproc-per-node 2 -m launch pretrain configs/demo_general.yaml

Only the first process writes to the terminal.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
import torch.distributed as dist

from distributed.errors import BadInput, Unrecoverable
from distributed.world import (
    Topology,
    broadcast_json,
    detect_topology,
    ensure_process_group,
    has_gpu_for_each_process,
)
from launch.progress import ProgressDisplay, follow_metrics, print_notes, report_end
from launch.recipes import AnyRecipe, import_training, pack, unpack
from training.config import LaunchConfig, RunConfig
from training.events import EventTail
from training.folder import run_folder_of
from training.lease import refuse_if_held
from training.mirroring import copy_the_rest, fetch_newer, mirrored
from training.recipe import RunPlan
from training.session import begin_run, hold_run
from training.stopping import STOPPED_EXIT_CODE, signals_request_stop


def run_locally(recipe: AnyRecipe) -> int:
    """Collective: train in this process, with those that torchrun started beside it; the exit code.

    Raises:
        BadInput: in the first process; the others leave with the same exit code and no words.
    """
    with ExitStack() as held:
        try:
            with process_group(recipe.config.launch) as (topology, use_gpu):
                return _train_held(recipe, topology, held, use_gpu=use_gpu)
        except Unrecoverable as error:
            if dist.get_rank() == 0:
                logs = run_folder_of(recipe.config).logs
                print(f"error: {error} (logs: {logs})", file=sys.stderr)
            return 1


def _train_held(recipe: AnyRecipe, topology: Topology, held: ExitStack, *, use_gpu: bool) -> int:
    plan, config = _agree_on_plan(recipe, topology, held), recipe.config
    folder, finished_steps = run_folder_of(config), plan.finished_steps
    if not plan.is_complete:
        with (
            mirrored(config, say=print) if topology.is_first else nullcontext(),
            signals_request_stop(folder.stop_file, say=topology.is_first) as stop_requested,
            _progress(config, plan, show=topology.is_first),
        ):
            import_training(recipe, use_gpu=use_gpu)
            from training.worker import work

            state = work(recipe, plan, use_gpu=use_gpu, stop_requested=stop_requested)
            finished_steps = state.step
    # Rank 0 writes what makes a run finished; the others hear it from rank 0.
    finished = bool(broadcast_json(recipe.is_finished(plan, finished_steps)))
    if topology.is_first:
        return report_end(folder, finished_steps, plan.total_steps, ended_early=finished)
    return 0 if finished else STOPPED_EXIT_CODE


@contextmanager
def process_group(launch: LaunchConfig) -> Iterator[tuple[Topology, bool]]:
    """Collective: this process's group and whether it has a GPU; inside, one group for all runs.

    After an error the group is left as it is: the others may be gone.
    """
    use_gpu = has_gpu_for_each_process() if launch.use_gpu == "auto" else launch.use_gpu
    topology = detect_topology(use_gpu=use_gpu)
    is_unexpected = not use_gpu and launch.use_gpu == "auto" and torch.cuda.is_available()
    if is_unexpected and topology.is_first:
        print(
            f"training on CPUs: {torch.cuda.device_count()} GPU(s) are too few for the processes "
            "here, and launch.use_gpu is auto",
            file=sys.stderr,
        )
    is_own = not dist.is_initialized()
    ensure_process_group(topology)
    yield topology, use_gpu
    if is_own:
        dist.destroy_process_group()


def _agree_on_plan(recipe: AnyRecipe, topology: Topology, held: ExitStack) -> RunPlan:
    """Collective: rank 0 checks and holds the run; what it finds, good or bad, is for all."""
    answer: dict[str, object] = {}
    if topology.is_first:
        try:
            answer = pack(recipe, _set_up(recipe, topology.world_size, held))
        except BadInput as error:
            answer = {"error": str(error)}
    answer = broadcast_json(answer)
    if "error" in answer:
        if topology.is_first:
            raise BadInput(str(answer["error"]))
        raise SystemExit(2)
    _, plan = unpack(answer)
    return plan


def _set_up(recipe: AnyRecipe, world_size: int, held: ExitStack) -> RunPlan:
    config = recipe.config
    if config.train.global_batch_rows < world_size:
        raise BadInput(
            f"train.global_batch_rows ({config.train.global_batch_rows}) is below the number of "
            f"processes ({world_size}): each needs a row of every batch"
        )
    folder = run_folder_of(config)
    refuse_if_held(folder.path)
    fetch_newer(config, say=print)
    plan: RunPlan = recipe.check()
    print_notes(plan.notes)
    if not plan.is_complete:
        held.enter_context(hold_run(folder))
        begin_run(recipe, plan)
    else:
        copy_the_rest(config, say=print)
    return plan


@contextmanager
def _progress(config: RunConfig, plan: RunPlan, *, show: bool) -> Iterator[None]:
    """Meanwhile, a thread brings the metrics to the display."""
    if not show:
        yield
        return
    finished = threading.Event()
    folder = run_folder_of(config)
    events = EventTail(folder.events_file)

    def follow() -> None:
        with ProgressDisplay(
            plan.total_steps, start_step=plan.finished_steps, label=config.name
        ) as display:

            def is_over() -> bool:
                ended = finished.is_set()
                events.tell(display.note)
                return ended

            follow_metrics(folder.metrics_file, stop=is_over, on_record=display.update)

    follower = threading.Thread(target=follow, name="progress")
    follower.start()
    try:
        yield
    finally:
        finished.set()
        follower.join()
