"""One process of a fine-tuning run: train, masks frozen; choose by dev; score the test once.

train       the loop of pretraining; each evaluation on dev saves a checkpoint, the best is kept
score       the best checkpoint, in a new engine: dev again, and test if it is asked for
results     runs/NAME/seed-1/results.json and predictions.jsonl, by rank 0
"""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from bert.configuration import ModelConfig
from bert.metrics import Metrics, MetricsFiles
from bert.model import flops_per_token
from bert.model_files import read_verified
from bert.pretraining import TrainState, train
from bert.restoring import Start, resume_start, transfer_start
from bert.tasks.batches import TaskBatches
from bert.tasks.predicting import predict
from bert.tasks.validation import TaskValidation, find_best
from bert.teacher import DistilledBatches
from bert.vocabulary import load_vocabulary
from distributed.checkpoint import Checkpoint, list_steps, step_folder
from distributed.collectives import broadcast_json
from launch.attempt import Attempt
from launch.configuration import dump_yaml
from launch.finetune_configuration import FinetuneConfig
from launch.finetune_inputs import Inputs, read_inputs
from launch.finetune_results import write_results
from launch.finetune_setup import build_new_task_model, build_task_teacher
from launch.run_events import append_event
from launch.run_folder import RunFolder, read_metrics, run_folder_of
from launch.run_setup import FinetunePlan
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
from sparsity.schedule import SparsityConfig

log = logging.getLogger(__name__)


def run_finetuning(
    config: FinetuneConfig,
    plan: FinetunePlan,
    *,
    use_gpu: bool,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Collective: start or continue the run of one seed, to its scores or to an agreed stop.

    Args:
        config: with absolute paths and one seed; the driver has checked it (finetune_setup.py).
        plan: what the driver found.
        use_gpu: whether each process has a GPU of its own.
        report: called after each checkpoint, equally often on all ranks.
        stop_requested: asked after each step; one rank's yes is enough.
    """
    folder = run_folder_of(config)
    with worker_process(config.launch, folder, use_gpu=use_gpu) as process:
        vocabulary = load_vocabulary(folder.vocab_file, **plan.tokenizer)
        inputs = read_inputs(config, vocabulary, begun_labels=plan.labels)
        run = _Run(config, plan, inputs, process)
        with watched(process, config.launch.hang_seconds, stop_requested) as (
            asked_after_step,
            beat,
        ):
            state, is_trained = train_and_return(
                process,
                lambda attempt: run.train(attempt, report, asked_after_step, beat),
                most_returns=config.train.max_non_finite_steps,
            )
            if is_trained:
                run.score(beat)
        return state


class _Run:
    """One seed's run in one process."""

    def __init__(
        self,
        config: FinetuneConfig,
        plan: FinetunePlan,
        inputs: Inputs,
        process: WorkerProcess,
    ) -> None:
        self.config, self.plan, self.inputs = config, plan, inputs
        self.process, self.topology, self.folder = process, process.topology, process.folder
        self.model = ModelConfig.model_validate({**plan.model, "vocab": self.folder.vocab_file})
        self.sparsity = SparsityConfig.model_validate(plan.sparsity) if plan.sparsity else None
        self.num_rows = len(inputs.splits["train"].rows)
        self.train_config = config.train.plan(self.num_rows)

    def train(
        self,
        attempt: Attempt,
        report: Callable[[dict[str, Any]], None],
        stop_requested: Callable[[], bool],
        beat: Callable[[], None],
    ) -> tuple[TrainState, bool]:
        """Collective: the state at the end, and whether training is done."""
        config, topology, folder = self.config, self.topology, self.folder
        module = build_new_task_model(config, self.model, self.inputs)
        if attempt.checkpoint is not None:
            start = resume_start(attempt.checkpoint)
        else:
            assert self.plan.source is not None
            start = transfer_start(
                self.plan.source,
                read_verified(self.plan.source),
                module,
                sparsity=self.sparsity,
                encoder_only=True,
            )
        start = pass_over(start, attempt)
        log.info("starting from %s at step %d", start.origin, start.state.step)
        interval = config.train.evaluation_interval_steps(self.num_rows)
        validation = TaskValidation(
            interval_steps=interval,
            patience=config.train.patience,
            split=self.inputs.splits["dev"],
            batches=self.batches("dev"),
            task=config.task,
            labels=self.inputs.data.labels,
            history=self._history(),
            beat=beat,
        )
        batches = self.batches("train")
        teacher = build_task_teacher(config, self.inputs, device=topology.device)
        engine, sparsity = build_restored_engine(
            module,
            start,
            train=self.train_config,
            zero=config.zero,
            sparsity=self.sparsity,
            accumulation_steps=batches.micro_steps,
            device=topology.device,
        )
        metrics = Metrics(
            MetricsFiles(folder.metrics_file, folder.tensorboard),
            topology=topology,
            start_step=start.state.step,
            flops_per_token=flops_per_token(
                self.model,
                vocab_size=0,
                max_seq_len=config.task.max_seq_len,
                mlm_probability=0.0,
            ),
            config_text=dump_yaml(config),
            digests={
                "data": self.plan.identity["task"]["fingerprint"],
                "vocabulary": self.plan.identity["model"]["vocab_sha256"],
                "first weights": self.plan.identity["model"]["init_fingerprint"],
            },
            on_record=guard_figures(self.process, attempt, loss_name=batches.loss_name),
        )
        best: set[int] = set()  # steps that were the best so far when they were saved

        def keep_if_best(step: int) -> None:
            if step in best:
                _keep_best(folder, step)

        if topology.is_first and validation.best_step == start.state.step:
            # Whoever wrote this checkpoint may have died before it was kept.
            _keep_best(folder, start.state.step)
        with (
            closing(metrics),
            checkpoint_writer(folder, attempt, config.checkpoint, on_commit=keep_if_best) as writer,
        ):

            def save(state: TrainState) -> None:
                if validation.best_step == state.step:
                    best.add(state.step)
                save_run(
                    writer,
                    state,
                    engine=engine,
                    sparsity=sparsity,
                    metrics=metrics,
                    described=self._described(),
                )

            state = train(
                self.train_config,
                start.state,
                seed=config.seed,
                engine=engine,
                batches=batches if teacher is None else DistilledBatches(batches, teacher),
                sparsity=sparsity,
                evaluator=validation,
                metrics=metrics,
                save_interval_steps=interval,
                save=save,
                report=report,
                stop_requested=stop_requested,
                tell=self.process.tell,
            )
        return state, state.step >= self.train_config.total_steps or validation.is_satisfied

    def score(self, beat: Callable[[], None]) -> None:
        """Collective: score the best checkpoint, and write what it scored."""
        best = self._agree_on_best()
        module = build_new_task_model(self.config, self.model, self.inputs)
        start: Start = resume_start(best)
        engine, sparsity = build_restored_engine(
            module,
            start,
            train=self.train_config,
            zero=self.config.zero,
            sparsity=self.sparsity,
            accumulation_steps=1,
            device=self.topology.device,
        )
        names = ["dev"]
        if self.config.score_test and self.config.task.test is not None:
            names.append("test")
        found = {
            name: predict(
                engine,
                self.inputs.splits[name],
                self.batches(name),
                task=self.config.task,
                labels=self.inputs.data.labels,
                beat=beat,
            )
            for name in names
        }
        if self.topology.is_first:
            write_results(
                self.folder,
                found,
                config=self.config,
                inputs=self.inputs,
                best=best,
                total_steps=self.train_config.total_steps,
                sparsity=sparsity.state if sparsity is not None else None,
            )

    def batches(self, split: str) -> TaskBatches:
        """This rank's batches of a split."""
        return TaskBatches(
            self.inputs.splits[split].rows,
            pad_id=self.inputs.vocabulary.pad_id,
            seed=self.config.seed,
            global_batch_rows=self.config.train.global_batch_rows,
            micro_batch_rows=self.config.train.micro_batch_rows,
            rank=self.topology.rank,
            world_size=self.topology.world_size,
            evaluation=split != "train",
        )

    def _history(self) -> list[tuple[int, float]]:
        """Collective: what dev scored before the restored step, as rank 0's metrics say."""
        key = f"dev/{self.config.task.main_metric}"
        found = []
        if self.topology.is_first:
            records = read_metrics(self.folder.metrics_file)
            found = [(record["step"], record[key]) for record in records if key in record]
        return [(int(step), float(score)) for step, score in broadcast_json(found)]

    def _agree_on_best(self) -> Checkpoint:
        """Collective: the checkpoint that dev chose, the same for all ranks."""
        chosen = find_best(self._history())
        step = broadcast_json(self._keep_chosen(chosen) if self.topology.is_first else None)
        if step is None:
            raise RuntimeError(f"{self.folder.best} has no checkpoint")
        return Checkpoint(step_folder(self.folder.best, step))

    def _keep_chosen(self, chosen: int | None) -> int | None:
        """The step to score: `chosen`, unless its checkpoint could not be written or kept."""
        kept = list_steps(self.folder.best)
        if chosen is None or chosen in kept:
            return kept[-1] if chosen is None and kept else chosen
        if chosen in list_steps(self.folder.checkpoints):
            with suppress(OSError):  # the other ranks wait to hear which it is
                _keep_best(self.folder, chosen)  # it could not be when it was written
                return chosen
        if kept:
            append_event(
                self.folder.events_file,
                "checkpoint",
                f"step {chosen} was best on dev, and its checkpoint could not be kept: step "
                f"{kept[-1]} is scored in its place",
            )
        return kept[-1] if kept else None

    def _described(self) -> dict[str, Any]:
        model = self.model.model_dump(mode="json")
        return {
            "config": {**self.config.model_dump(mode="json"), "model": model},
            "identity": self.plan.identity,
            "zero_stage": self.config.zero.stage,
            "labels": list(self.inputs.data.labels),
        }


def _keep_best(folder: RunFolder, step: int) -> None:
    """Hold on to the checkpoint of `step` in best/, by hard links: it costs no space or time."""
    kept = step_folder(folder.best, step)
    partial = folder.best / f".{kept.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(step_folder(folder.checkpoints, step), partial, copy_function=_link)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(partial, kept)
    for other in list_steps(folder.best):
        if other != step:
            shutil.rmtree(step_folder(folder.best, other))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
