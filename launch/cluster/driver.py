"""The Ray driver: checks, places and follows a run that Ray Train's workers train.

    main thread     signals -> stop file; metrics.jsonl and failures -> progress display
    second thread   TorchTrainer.fit(), which restarts lost worker groups from the newest checkpoint

Our own manifests decide what is newest: Ray's storage holds no checkpoint of ours, and every start
has a name of its own, because Ray silently resumes a name that it has seen.
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.errors import BadInput
from launch import RAY_THREAD
from launch.cluster.elastic import ask_when_more_fit, await_workers
from launch.cluster.failures import (
    BackOff,
    Failure,
    Failures,
    build_callback,
    last_line,
    record_failure,
)
from launch.cluster.group import build_backend_config
from launch.cluster.nodes import check_resources, ray_cluster
from launch.cluster.storage import check_shared_storage
from launch.cluster.trainer import build_trainer
from launch.cluster.worker import train_on_ray
from launch.progress import ProgressDisplay, follow_metrics, print_notes, report_end
from launch.recipes import AnyRecipe, pack
from training.attempt import newest_step
from training.config import LaunchConfig
from training.events import EventTail, append_event
from training.folder import RunFolder, last_step, run_folder_of
from training.lease import refuse_if_held
from training.mirroring import copy_the_rest, fetch_newer, mirrored
from training.recipe import RunPlan
from training.session import begin_run, hold_run
from training.stopping import signals_request_stop


def run_on_ray(recipe: AnyRecipe) -> int:
    """Train a run to its end, or continue it; the process's exit code.

    Raises:
        BadInput: nothing is left behind of a run that has not begun.
    """
    config, folder = recipe.config, run_folder_of(recipe.config)
    refuse_if_held(folder.path)
    fetch_newer(config, say=print)
    plan = recipe.check()
    print_notes(plan.notes)
    if plan.is_complete:
        copy_the_rest(config, say=print)
        return report_end(folder, plan.finished_steps, plan.total_steps, ended_early=True)
    attempt = folder.ray / f"attempt-{time.time_ns()}"
    logs = attempt / "logs"
    with ray_cluster(config.launch, log_folder=logs) as is_own:
        use_gpu = check_resources(config.launch)
        check_shared_storage(recipe, use_gpu=use_gpu)
        with hold_run(folder) as lost, mirrored(config, say=print):
            begin_run(recipe, plan)
            logs.mkdir(parents=True)
            return _follow(_Start(recipe, plan, attempt, use_gpu, is_own), lost)


@dataclass(frozen=True)
class _Start:
    """One start of a run on a cluster."""

    recipe: AnyRecipe
    plan: RunPlan
    attempt: Path  # its folder in the run's
    use_gpu: bool
    is_own_cluster: bool

    @property
    def launch(self) -> LaunchConfig:
        """Where the run runs."""
        return self.recipe.config.launch

    @property
    def folder(self) -> RunFolder:
        """The run's."""
        return run_folder_of(self.recipe.config)

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.recipe.is_finished(self.plan, newest_step(self.folder))


def _build_trainer(start: _Start, number: int, *, workers: int, restarts: int) -> Any:
    """A trainer for the start's group of this number."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig

    launch, attempt = start.launch, start.attempt
    # A group of another size is a run of its own to Ray. One that cannot start is seen to here:
    # Ray would try for ever, without a word.
    failure_config = (
        FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
        if launch.is_elastic
        else FailureConfig(max_failures=restarts, controller_failure_limit=0)
    )
    return build_trainer(
        is_own_cluster=start.is_own_cluster,
        train_loop_per_worker=train_on_ray,
        train_loop_config={
            **pack(start.recipe, start.plan),
            "use_gpu": start.use_gpu,
            "resize_request": str(attempt / f"resize-{number}"),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=start.use_gpu,
            placement_strategy=launch.placement.upper(),
            resources_per_worker={
                "CPU": launch.cpus_per_worker,
                **({"GPU": 1} if start.use_gpu else {}),
            },
        ),
        backend_config=build_backend_config(),
        run_config=RunConfig(
            name=attempt.name if number == 0 else f"{attempt.name}-{number}",
            storage_path=str(attempt.parent),
            failure_config=failure_config,
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[build_callback(attempt, start.folder.metrics_file)],
        ),
    )


def _fit(
    start: _Start,
    failures: Failures,
    *,
    over: threading.Event,
    stop_requested: Callable[[], bool],
) -> None:
    """Train to the end or to a stop, in as many groups as it takes.

    Ray Train restarts a group of a fixed size that fails while it trains, and raises what happens
    before, such as the death of a worker that has not begun: then the group is started again here,
    and one that the cluster has no room for as often as it takes. A group whose size may change is
    always started here, with what the cluster holds by then. Nothing is started any more once
    `over` is set, or when a stop was asked for.
    """
    from ray.train import ControllerError, TrainingFailedError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    folder, launch, use_gpu = start.folder, start.launch, start.use_gpu
    back_off = BackOff()

    def say(message: str) -> None:
        append_event(folder.events_file, "start", message)

    def is_over() -> bool:
        return over.is_set() or stop_requested()

    for number in itertools.count():
        workers = await_workers(launch, use_gpu=use_gpu, say=say, give_up=is_over)
        if is_over():
            return  # what was saved last is what there is
        if launch.is_elastic:
            say(f"{workers} worker(s) of at most {launch.most_workers}")
        request = start.attempt / f"resize-{number}"
        trainer = _build_trainer(start, number, workers=workers, restarts=failures.restarts_left)
        before = failures.count
        try:
            with ask_when_more_fit(
                launch,
                request,
                use_gpu=use_gpu,
                is_full=workers == launch.most_workers,
                check=lambda: check_shared_storage(start.recipe, use_gpu=use_gpu),
                say=say,
            ):
                trainer.fit()
        except TrainingFailedError as error:
            if start.is_finished():
                return  # the group's end failed, not its work
            is_start = isinstance(error, ControllerError)
            is_waiting = not launch.is_elastic and (
                is_start and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)
            )
            if is_waiting:  # as often as it takes: it costs no restart
                say(f"waiting: the cluster has no room for {workers} worker(s) at the moment")
            failures.poll()
            if not is_waiting and is_start:
                record_failure(start.attempt, Failure(None, last_line(error), died=True))
            elif not is_waiting and failures.count == before:
                failures.spend_restart()  # the group ended, and no worker said why
            if failures.poll() or failures.is_exhausted:
                raise
            if not (is_start or launch.is_elastic):
                raise
            if over.wait(back_off.next_seconds(last_step(folder.metrics_file))):
                raise
            continue
        if not request.exists() or is_over() or start.is_finished():
            return
        say("saved and starting again: there is room for more workers")


def _follow(start: _Start, lost: threading.Event) -> int:
    """Train and show it until it ends, or the run is `lost` to another launcher; the exit code.

    Raises:
        BadInput: a worker met it; there is no restart.
    """
    folder, launch, attempt, plan = start.folder, start.launch, start.attempt, start.plan
    name, total = start.recipe.config.name, plan.total_steps
    outcome: dict[str, BaseException] = {}
    finished, over = threading.Event(), threading.Event()

    def fit() -> None:
        try:
            _fit(start, failures, over=over, stop_requested=stop_requested)
        except BaseException as error:
            outcome["error"] = error
        finally:
            finished.set()

    with (
        signals_request_stop(folder.stop_file) as stop_requested,
        ProgressDisplay(total, start_step=plan.finished_steps, label=name) as display,
    ):
        failures = Failures(
            attempt,
            folder,
            launch.max_failures,
            say=display.note,
            stop_requested=stop_requested,
        )
        events = EventTail(folder.events_file)
        if not launch.is_elastic:
            display.note(f"starting {launch.most_workers} worker(s)")
        threading.Thread(target=fit, name=RAY_THREAD, daemon=True).start()

        def is_over() -> bool:
            stop_requested()  # writes the file, if it could not be written before
            ended = finished.is_set() | failures.poll() | lost.is_set()
            events.tell(display.note)
            return ended

        follow_metrics(
            folder.metrics_file, stop=is_over, on_record=display.update, pause=finished.wait
        )
        over.set()
    if lost.is_set():
        print(f"error: another launcher has taken over {folder.path}", file=sys.stderr)
        return 1
    if failures.bad_input is not None:
        raise BadInput(failures.bad_input.reason)  # and with the cluster go the other workers
    if failures.diagnosis is not None:
        print(f"error: {failures.diagnosis} (logs: {folder.logs}, {attempt})", file=sys.stderr)
        return 1
    if "error" in outcome and not failures.has_stopped:
        reason = failures.last or last_line(outcome["error"])
        print(f"error: training failed, {reason} (logs: {folder.logs}, {attempt})", file=sys.stderr)
        return 1
    newest = newest_step(folder)
    return report_end(folder, newest, total, ended_early=start.recipe.is_finished(plan, newest))
