"""One training process: Ray Train, torchrun and a single process all call `run_pretraining`."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert.corpora.batches import build_training_batches
from bert.evaluation import build_evaluator
from bert.metrics import Metrics, MetricsFiles
from bert.model import (
    flops_per_token,
    is_prunable,
    named_weights,
    uses_weight_decay,
)
from bert.pretraining import TrainConfig, TrainState, train
from bert.restoring import (
    Start,
    fill_module,
    fresh_start,
    restore_engine,
    resume_start,
    transfer_start,
)
from bert.teacher import DistilledBatches
from bert.vocabulary import load_vocabulary
from distributed.checkpoint import Checkpoint, find_newest, remove_old, save_checkpoint
from distributed.collectives import broadcast_json
from distributed.topology import Topology, detect_topology, ensure_process_group
from distributed.zero import Engine, ZeroConfig, build_engine
from launch.configuration import PretrainConfig, dump_yaml
from launch.run_folder import RunFolder, run_folder_of, truncate_metrics
from launch.run_setup import build_new_model, build_teacher
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig

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
    module = build_new_model(config, vocabulary)
    checkpoint, attempt = agree_on_start(folder, topology)
    if checkpoint is not None:
        start = resume_start(checkpoint)
    elif init_from is not None:
        start = transfer_start(init_from, module, config.model, sparsity=config.sparsity)
    else:
        start = fresh_start(module)
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
            vocab_size=vocabulary.size,
            max_seq_len=config.data.max_seq_len,
            mlm_probability=config.data.mlm_probability,
        ),
        config_text=dump_yaml(config),
    )

    def save(state: TrainState) -> None:
        save_run(
            folder,
            state,
            engine=engine,
            sparsity=sparsity,
            attempt=attempt,
            keep_last=config.checkpoint.keep_last,
            topology=topology,
            described={
                "config": config.model_dump(mode="json"),
                "identity": dict(identity),
                "zero_stage": config.zero.stage,
                "metrics": metrics.latest,
            },
        )

    try:
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
        )
    except Exception:
        log.exception("worker %d failed", topology.rank)
        raise
    finally:
        metrics.close()


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
            prunable=[name for name, _ in weights if is_prunable(name)],
            optimizer=engine.deepspeed_engine.basic_optimizer,
        )
    restore_engine(engine, start, controller)
    return engine, controller


def save_run(
    folder: RunFolder,
    state: TrainState,
    *,
    engine: Engine,
    sparsity: SparsityController | None,
    attempt: str,
    keep_last: int,
    topology: Topology,
    described: Mapping[str, Any],
) -> None:
    """Collective: a checkpoint of `state`, and old ones removed; refused if masks do not hold.

    `described`: configuration, identity, ZeRO stage and figures, for the manifest.
    """
    if sparsity is not None and (name := sparsity.find_violation()) is not None:
        raise RuntimeError(f"a pruned weight of {name} is not zero: the masks are not enforced")
    save_checkpoint(
        folder.checkpoints,
        step=state.step,
        attempt=attempt,
        partition=engine.partition,
        packed_masks=sparsity.packed_masks() if sparsity is not None else {},
        state={
            **described,
            "train": state.to_dict(),
            "sparsity": asdict(sparsity.state) if sparsity is not None else None,
            "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        },
    )
    if topology.is_first:
        remove_old(folder.checkpoints, newest=state.step, keep_last=keep_last)


def agree_on_start(folder: RunFolder, topology: Topology) -> tuple[Checkpoint | None, str]:
    """Collective: the newest good checkpoint, verified by rank 0, and a new attempt's name.

    Rank 0 also cuts the metrics back to that checkpoint.
    """
    choice: dict[str, Any] = {}
    if topology.is_first:
        try:
            newest, refused = find_newest(folder.checkpoints)
            for reason in refused:
                log.warning("passed over a damaged checkpoint: %s", reason)
            truncate_metrics(folder.metrics_file, newest.step if newest else 0)
            choice = {
                "path": str(newest.path) if newest else None,
                "attempt": f"{int(time.time())}-{uuid.uuid4().hex[:8]}",
            }
        except Exception as error:
            # The others wait for this broadcast: they hear of the failure instead of hanging.
            choice = {"error": repr(error)}
    choice = broadcast_json(choice)
    if "error" in choice:
        raise RuntimeError(f"rank 0 could not choose a checkpoint: {choice['error']}")
    if choice["path"] is None:
        return None, choice["attempt"]
    # Rank 0 has compared the checksums; once is enough.
    return Checkpoint(Path(choice["path"]), verify=False), choice["attempt"]


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
