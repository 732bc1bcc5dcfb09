"""Training in one process, of any recipe: Ray Train, torchrun and a single process all call `work`.

work            one attempt after another, as long as training goes back to a checkpoint
_train_from     builds everything, restores what the attempt says and trains
build_restored_engine    weights, moments and masks as a start says
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from distributed.checkpoint.fencing import check_claim
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.zero import Engine, build_engine
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig
from training.attempt import Attempt, agree_on_attempt
from training.config import dump_yaml
from training.folder import read_metrics, run_folder_of
from training.guards import GoBack, SpikeDetector
from training.loop import train
from training.metrics import Metrics, MetricsFiles
from training.process import WorkerProcess, watched, worker_process
from training.recipe import Plan, Recipe, Trainable
from training.saving import checkpoint_writer, save_run
from training.start import Start, fill_module, restore_engine, resume_start
from training.state import TrainState, Weight

log = logging.getLogger(__name__)


def work(
    recipe: Recipe[Plan],
    plan: Plan,
    *,
    use_gpu: bool,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Collective: start or continue the run, to its end or to an agreed stop.

    Args:
        recipe: of the run; the launcher has checked it.
        plan: what the launcher found.
        use_gpu: whether each process has a GPU of its own.
        report: called after each checkpoint, equally often on all ranks.
        stop_requested: asked after each step; one rank's yes is enough.
    """
    config, folder = recipe.config, run_folder_of(recipe.config)
    with worker_process(config.launch, folder, use_gpu=use_gpu) as process:
        trainable = recipe.build(plan, process)
        with watched(process, config.launch.hang_seconds, stop_requested) as (asked, beat):
            next_batch, state = None, None
            while state is None:
                attempt = agree_on_attempt(
                    folder,
                    process.topology,
                    next_batch=next_batch,
                    most_returns=config.train.max_non_finite_steps,
                )
                try:
                    state = _train_from(
                        attempt,
                        trainable,
                        process,
                        identity=plan.identity,
                        report=report,
                        stop_requested=asked,
                        beat=beat,
                    )
                except GoBack as request:
                    next_batch = request.next_batch
            trainable.finish(state, beat)
            return state


def _train_from(
    attempt: Attempt,
    trainable: Trainable,
    process: WorkerProcess,
    *,
    identity: Mapping[str, Any],
    report: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    beat: Callable[[], None],
) -> TrainState:
    """Collective: build everything, restore it and train; see `work`."""
    config, folder, batches = trainable.config, process.folder, trainable.batches
    module = trainable.build_module()
    if attempt.checkpoint is not None:
        start = resume_start(attempt.checkpoint)
    else:
        start = trainable.first_start(module)
    start = _skip_batches(start, attempt)
    log.info("starting from %s at step %d", start.origin, start.state.step)
    engine, sparsity = build_restored_engine(
        module,
        trainable.weights(module),
        start,
        optimizer=trainable.train_config,
        zero=config.zero,
        sparsity=trainable.sparsity,
        accumulation_steps=batches.micro_steps,
        device=process.topology.device,
    )
    validation = trainable.validation(start.state, beat)
    metrics = Metrics(
        MetricsFiles(folder.metrics_file, folder.tensorboard),
        topology=process.topology,
        start_step=start.state.step,
        flops_per_token=trainable.flops_per_token,
        config_text=dump_yaml(config),
        digests=trainable.digests,
        matrix_titles=trainable.matrix_titles,
        on_record=_guard_figures(process, attempt, loss_name=batches.loss_name),
    )
    described = {
        **trainable.described,
        "identity": dict(identity),
        "zero_stage": config.zero.stage,
    }
    with (
        closing(metrics),
        checkpoint_writer(
            folder, attempt, config.checkpoint, on_commit=trainable.after_commit
        ) as writer,
    ):

        def save(state: TrainState) -> None:
            trainable.before_save(state)
            save_run(
                writer,
                state,
                engine=engine,
                sparsity=sparsity,
                metrics=metrics,
                described=described,
            )

        return train(
            trainable.train_config,
            start.state,
            seed=config.seed,
            engine=engine,
            batches=batches,
            sparsity=sparsity,
            evaluator=validation,
            metrics=metrics,
            save_interval_steps=trainable.save_interval_steps,
            save=save,
            report=report,
            stop_requested=stop_requested,
            tell=process.tell,
        )


def _skip_batches(start: Start, attempt: Attempt) -> Start:
    """`start`, moved past the batches that the attempt skips."""
    if attempt.batch_offset is None:
        return start
    return replace(start, state=replace(start.state, batch_offset=attempt.batch_offset))


def _guard_figures(
    process: WorkerProcess, attempt: Attempt, *, loss_name: str
) -> Callable[[Mapping[str, Any]], None]:
    """A hook that rank 0 runs before each record: check the fence, report loss spikes."""
    spikes = SpikeDetector()
    for record in read_metrics(
        process.folder.metrics_file
    ):  # a resumed run judges as one that never stopped
        spikes.check(record.get(loss_name))

    def before_record(record: Mapping[str, Any]) -> None:
        # A group that was cut off and trains on alone must not write into its successor's figures.
        check_claim(process.folder.checkpoints, attempt.token)
        if loss_name in record and (found := spikes.check(record[loss_name])):
            process.tell("spike", f"step {record['step']}: {found}")

    return before_record


def build_restored_engine(
    module: nn.Module,
    weights: Sequence[Weight],
    start: Start,
    *,
    optimizer: OptimizerConfig,
    zero: ZeroConfig,
    sparsity: SparsityConfig | None,
    accumulation_steps: int,
    device: torch.device,
) -> tuple[Engine, SparsityController | None]:
    """Collective: an engine around `module` that holds exactly what `start` says."""
    fill_module(weights, start)
    engine = build_engine(
        module,
        named_parameters=[(weight.name, weight.parameter) for weight in weights],
        no_decay=[weight.name for weight in weights if not weight.decays],
        optimizer=optimizer,
        zero=zero,
        accumulation_steps=accumulation_steps,
        device=device,
    )
    controller = None
    if sparsity is not None:
        controller = SparsityController(
            sparsity,
            engine.partition,
            prunable=[w.name for w in weights if w.is_prunable or w.name in start.masked],
            optimizer=engine.deepspeed_engine.basic_optimizer,
        )
    restore_engine(engine, start, controller)
    return engine, controller
