"""One pretraining process: Ray Train, torchrun and a single process all call `run_pretraining`."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from bert.corpora.batches import RowBatches, build_training_batches
from bert.evaluation import build_evaluator
from bert.metrics import Metrics, MetricsFiles
from bert.model import flops_per_token
from bert.model_files import read_verified
from bert.pretraining import TrainState, train
from bert.restoring import fresh_start, resume_start, transfer_start
from bert.teacher import DistilledBatches
from bert.vocabulary import Vocabulary, load_vocabulary
from launch.attempt import Attempt
from launch.configuration import PretrainConfig, dump_yaml
from launch.run_folder import run_folder_of
from launch.run_setup import build_new_model, build_teacher
from launch.saving import checkpoint_writer, save_run
from launch.training import (
    WorkerProcess,
    build_restored_engine,
    guard_figures,
    pass_over,
    train_and_return,
    watched,
    worker_process,
)

log = logging.getLogger(__name__)


def run_pretraining(
    config: PretrainConfig,
    *,
    identity: Mapping[str, Any],
    init_from: Path | None,
    use_gpu: bool,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Collective: start or continue the run of `config`, to its end or to an agreed stop.

    Args:
        config: with absolute paths; the driver has checked it (run_setup.py).
        identity: what makes this run this run, kept in each checkpoint.
        init_from: the checkpoint or Hugging Face folder that model.init_from means.
        use_gpu: whether each process has a GPU of its own.
        report: called after each checkpoint, equally often on all ranks.
        stop_requested: asked after each step; one rank's yes is enough.
    """
    folder = run_folder_of(config)
    with worker_process(config.launch, folder, use_gpu=use_gpu) as process:
        vocabulary = load_vocabulary(config.model.vocab)
        batches = build_training_batches(
            config.data,
            vocabulary=vocabulary,
            seed=config.seed,
            global_batch_rows=config.train.global_batch_rows,
            micro_batch_rows=config.train.micro_batch_rows,
            rank=process.topology.rank,
            world_size=process.topology.world_size,
            cache_dir=folder.cache,
        )
        with watched(process, config.launch.hang_seconds, stop_requested) as (asked_after_step, _):
            return train_and_return(
                process,
                lambda attempt: _train_from(
                    attempt,
                    config,
                    identity=identity,
                    init_from=init_from,
                    process=process,
                    vocabulary=vocabulary,
                    batches=batches,
                    report=report,
                    stop_requested=asked_after_step,
                ),
                most_returns=config.train.max_non_finite_steps,
            )


def _train_from(
    attempt: Attempt,
    config: PretrainConfig,
    *,
    identity: Mapping[str, Any],
    init_from: Path | None,
    process: WorkerProcess,
    vocabulary: Vocabulary,
    batches: RowBatches,
    report: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
) -> TrainState:
    """Collective: build everything, restore it and train; see `run_pretraining`."""
    folder, topology = process.folder, process.topology
    module = build_new_model(config, vocabulary)
    if attempt.checkpoint is not None:
        start = resume_start(attempt.checkpoint)
    elif init_from is not None:
        weights = read_verified(init_from)
        start = transfer_start(init_from, weights, module, sparsity=config.sparsity)
    else:
        start = fresh_start(module)
    start = pass_over(start, attempt)
    log.info("starting from %s at step %d", start.origin, start.state.step)
    engine, sparsity = build_restored_engine(
        module,
        start,
        train=config.train,
        zero=config.zero,
        sparsity=config.sparsity,
        accumulation_steps=batches.micro_steps,
        device=topology.device,
    )
    teacher = build_teacher(config, vocabulary, device=topology.device)
    metrics = Metrics(
        MetricsFiles(folder.metrics_file, folder.tensorboard),
        topology=topology,
        start_step=start.state.step,
        flops_per_token=flops_per_token(
            config.model,
            vocab_size=config.model.count_rows(vocabulary.size),
            max_seq_len=config.data.max_seq_len,
            mlm_probability=config.data.mlm_probability,
        ),
        config_text=dump_yaml(config),
        digests={
            "data": identity["data"]["fingerprint"],
            "vocabulary": identity["model"]["vocab_sha256"],
            "first weights": identity["model"]["init_fingerprint"],
        },
        on_record=guard_figures(process, attempt, loss_name=batches.loss_name),
    )
    with closing(metrics), checkpoint_writer(folder, attempt, config.checkpoint) as writer:

        def save(state: TrainState) -> None:
            save_run(
                writer,
                state,
                engine=engine,
                sparsity=sparsity,
                metrics=metrics,
                described={
                    "config": config.model_dump(mode="json"),
                    "identity": dict(identity),
                    "zero_stage": config.zero.stage,
                },
            )

        return train(
            config.train,
            start.state,
            seed=config.seed,
            engine=engine,
            batches=batches if teacher is None else DistilledBatches(batches, teacher),
            sparsity=sparsity,
            evaluator=build_evaluator(
                config.evaluation,
                config.data,
                vocabulary=vocabulary,
                micro_batch_rows=config.train.micro_batch_rows,
                topology=topology,
                cache_dir=folder.cache,
            ),
            metrics=metrics,
            save_interval_steps=config.checkpoint.interval_steps,
            save=save,
            report=report,
            stop_requested=stop_requested,
            tell=process.tell,
        )
