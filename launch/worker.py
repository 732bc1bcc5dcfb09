"""One training process: Ray Train, torchrun and a single process all call `run_pretraining`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bert.corpora.batches import RowBatches, build_training_batches
from bert.evaluation import build_evaluator
from bert.loss_spikes import SpikeDetector
from bert.mask_integrity import check_masks
from bert.metrics import Metrics, MetricsFiles
from bert.model import (
    flops_per_token,
    is_prunable,
    named_weights,
    uses_weight_decay,
)
from bert.numbers import GoBack
from bert.pretraining import TrainState, train
from bert.restoring import (
    fill_module,
    fresh_start,
    restore_engine,
    resume_start,
    transfer_start,
)
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.checkpoint_async import CheckpointWriter
from distributed.checkpoint_retention import remove_old
from distributed.fencing import check_claim
from distributed.topology import Topology, detect_topology, ensure_process_group
from distributed.zero import build_engine
from launch.attempt import Attempt, agree_on_attempt
from launch.configuration import PretrainConfig, dump_yaml
from launch.run_events import append_event
from launch.run_folder import read_metrics, run_folder_of, validation_by_step
from launch.run_setup import build_new_model
from launch.watchdog import Watchdog
from sparsity.controller import SparsityController

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
    topology = detect_topology(use_gpu=use_gpu)
    ensure_process_group(topology)
    folder = run_folder_of(config)
    log_to_file(folder.logs / f"worker-{topology.rank}.log")
    if topology.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))
    vocabulary = load_vocabulary(config.model.vocab)
    batches = build_training_batches(
        config.data,
        vocabulary=vocabulary,
        seed=config.seed,
        global_batch_rows=config.train.global_batch_rows,
        micro_batch_rows=config.train.micro_batch_rows,
        rank=topology.rank,
        world_size=topology.world_size,
        cache_dir=folder.cache,
    )
    watchdog = Watchdog(
        config.launch.hang_seconds,
        stacks=folder.logs / f"hang-{topology.rank}.log",
        tell=lambda message: append_event(
            folder.events_file, "hang", f"worker {topology.rank}: {message}"
        ),
    )

    def asked_after_step() -> bool:
        watchdog.beat()
        return stop_requested()

    try:
        return _train_and_return(
            config,
            identity=identity,
            init_from=init_from,
            topology=topology,
            vocabulary=vocabulary,
            batches=batches,
            report=report,
            stop_requested=asked_after_step,
        )
    finally:
        watchdog.stop()


def _train_and_return(config: PretrainConfig, *, topology: Topology, **fields: Any) -> TrainState:
    """Collective: train, going back to the last checkpoint as often as training asks for it."""
    folder = run_folder_of(config)
    next_batch = None
    while True:
        attempt = agree_on_attempt(
            folder,
            topology,
            next_batch=next_batch,
            most_returns=config.train.max_non_finite_steps,
        )
        try:
            return _train_from(attempt, config, topology=topology, **fields)
        except GoBack as request:
            next_batch = request.next_batch


def _train_from(
    attempt: Attempt,
    config: PretrainConfig,
    *,
    identity: Mapping[str, Any],
    init_from: Path | None,
    topology: Topology,
    vocabulary: Vocabulary,
    batches: RowBatches,
    report: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
) -> TrainState:
    """Collective: build everything, restore it and train; see `run_pretraining`."""
    folder = run_folder_of(config)

    def tell(kind: str, message: str) -> None:
        if topology.is_first:
            append_event(folder.events_file, kind, message)

    module = build_new_model(config, vocabulary)
    if attempt.checkpoint is not None:
        start = resume_start(attempt.checkpoint)
    elif init_from is not None:
        start = transfer_start(init_from, module, config.model, sparsity=config.sparsity)
    else:
        start = fresh_start(module)
    if attempt.batch_offset is not None:
        start = replace(start, state=replace(start.state, batch_offset=attempt.batch_offset))
    log.info("starting from %s at step %d", start.origin, start.state.step)
    fill_module(module, start)
    weights = named_weights(module)
    engine = build_engine(
        module,
        named_parameters=weights,
        no_decay=[name for name, _ in weights if not uses_weight_decay(name)],
        zero=config.zero,
        precision=config.train.precision,
        betas=config.train.betas,
        eps=config.train.adam_eps,
        weight_decay=config.train.weight_decay,
        max_grad_norm=config.train.max_grad_norm,
        micro_batch_rows=config.train.micro_batch_rows,
        accumulation_steps=batches.micro_steps,
        device=topology.device,
    )
    sparsity = None
    if config.sparsity is not None:
        sparsity = SparsityController(
            config.sparsity,
            engine.partition,
            prunable=[name for name, _ in weights if is_prunable(name)],
            optimizer=engine.deepspeed_engine.basic_optimizer,
        )
    restore_engine(engine, start, sparsity)
    spikes = SpikeDetector()
    for record in read_metrics(folder.metrics_file):  # a resumed run judges as one that went on
        spikes.look(record.get("train/mlm_loss"))

    def before_record(record: Mapping[str, Any]) -> None:
        # A group that was cut off and trains on alone must not write into its successor's figures.
        check_claim(folder.checkpoints, attempt.word)
        if "train/mlm_loss" in record and (found := spikes.look(record["train/mlm_loss"])):
            tell("spike", f"step {record['step']}: {found}")

    metrics = Metrics(
        MetricsFiles(folder.metrics_file, folder.tensorboard),
        topology=topology,
        start_step=start.state.step,
        flops_per_token=flops_per_token(
            config.model,
            vocab_size=vocabulary.size,
            max_seq_len=config.data.max_seq_len,
            mlm_probability=config.data.mlm_probability,
        ),
        config_text=dump_yaml(config),
        digests={
            "data": identity["data"]["fingerprint"],
            "vocabulary": identity["model"]["vocab_sha256"],
            "first weights": identity["model"]["init_fingerprint"],
        },
        on_record=before_record,
    )
    writer = CheckpointWriter(
        folder.checkpoints,
        attempt=attempt.word,
        max_failures=config.checkpoint.max_failed_writes,
        on_commit=lambda step: remove_old(
            folder.checkpoints,
            newest=step,
            config=config.checkpoint,
            losses=validation_by_step(folder.metrics_file),
        ),
        on_failure=lambda step, reason: append_event(
            folder.events_file,
            "checkpoint",
            f"the checkpoint of step {step} is not written: {reason}",
        ),
    )

    def save(state: TrainState) -> None:
        if sparsity is not None:
            check_masks(sparsity)
        writer.save(
            engine.partition,
            step=state.step,
            packed_masks=sparsity.packed_masks() if sparsity is not None else {},
            state={
                "config": config.model_dump(mode="json"),
                "identity": dict(identity),
                "train": state.to_dict(),
                "sparsity": asdict(sparsity.state) if sparsity is not None else None,
                "zero_stage": config.zero.stage,
                "metrics": metrics.latest,
                "versions": {
                    name: version(name) for name in ("torch", "deepspeed", "transformers")
                },
            },
        )
        metrics.note(writer.figures())

    try:
        end = train(
            config.train,
            start.state,
            seed=config.seed,
            engine=engine,
            batches=batches,
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
            tell=tell,
        )
        writer.finish()
        return end
    except GoBack:
        writer.settle()  # on all ranks alike: the checkpoint in flight is the one to go back to
        raise
    except Exception:
        log.exception("worker %d failed", topology.rank)
        raise
    finally:
        writer.close()
        metrics.close()


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
