"""Fine-tuning as a worker trains it: masks frozen; dev chooses; the test split is scored once.

train       the loop of pretraining; each evaluation on dev saves a checkpoint, the best is kept
finish      the best checkpoint, in a new engine: dev again, and test if it is asked for
results     runs/NAME/seed-1/results.json and predictions.jsonl, by rank 0
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import nn

from bert.architecture import SHORT_TITLES
from bert.config import ModelConfig
from bert.folders.model_files import read_verified
from bert.model import flops_per_token, list_weights
from bert.origins import digests_of
from bert.tasks.batches import TaskBatches
from bert.tasks.building import build_new_task_model, build_task_teacher
from bert.tasks.finetune import FinetunePlan
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.inputs import read_inputs
from bert.tasks.model import TaskModel
from bert.tasks.predicting import predict
from bert.tasks.results import write_results
from bert.tasks.validation import TaskValidation, find_best
from bert.teacher import DistilledBatches
from bert.transfer import transfer_start
from bert.vocabulary import load_vocabulary
from distributed.checkpoint.reading import Checkpoint, list_steps, step_folder
from distributed.world import broadcast_json
from sparsity.schedule import SparsityConfig
from training.events import append_event
from training.folder import RunFolder, read_metrics
from training.process import WorkerProcess
from training.recipe import Trainable
from training.start import Start, resume_start
from training.state import TrainState, Weight
from training.worker import build_restored_engine


class TaskTraining(Trainable):
    """One seed's run in one of its processes."""

    config: FinetuneConfig

    def __init__(self, config: FinetuneConfig, plan: FinetunePlan, process: WorkerProcess) -> None:
        """Read the task and load the teacher."""
        self.config, self._plan, self._process = config, plan, process
        self._folder = process.folder
        vocabulary = load_vocabulary(self._folder.vocab_file, **plan.tokenizer)
        self._inputs = inputs = read_inputs(config, vocabulary, begun_labels=plan.labels)
        self._model = ModelConfig.model_validate({**plan.model, "vocab": self._folder.vocab_file})
        num_rows = len(inputs.splits["train"].rows)
        self.train_config = config.train.plan(num_rows)
        self.sparsity = SparsityConfig.model_validate(plan.sparsity) if plan.sparsity else None
        teacher = build_task_teacher(config, inputs, device=process.topology.device)
        batches = self._batches_of("train")
        self.batches = batches if teacher is None else DistilledBatches(batches, teacher)
        # A checkpoint for every evaluation: one of them is the model.
        self.save_interval_steps = config.train.evaluation_interval_steps(num_rows)
        self.flops_per_token = flops_per_token(
            self._model, vocab_size=0, max_seq_len=config.task.max_seq_len, mlm_probability=0.0
        )
        self.matrix_titles = SHORT_TITLES
        self.digests = digests_of(plan.identity)
        model = self._model.model_dump(mode="json")
        self.described = {
            "config": {**config.model_dump(mode="json"), "model": model},
            "labels": list(inputs.data.labels),
        }

    def build_module(self) -> TaskModel:
        """The run's model with new weights."""
        return build_new_task_model(self.config, self._model, self._inputs)

    def weights(self, module: nn.Module) -> list[Weight]:
        """BERT's and the head's, by canonical name."""
        return list_weights(module)

    def first_start(self, module: nn.Module) -> Start:
        """The encoder of model.init_from under a new head."""
        assert self._plan.init_from is not None
        source = Path(self._plan.init_from)
        return transfer_start(
            source, read_verified(source), module, sparsity=self.sparsity, encoder_only=True
        )

    def validation(self, state: TrainState, beat: Callable[[], None]) -> TaskValidation:
        """Collective: the scores on dev, those before `state` among them."""
        self._validation = TaskValidation(
            interval_steps=self.save_interval_steps,
            patience=self.config.train.patience,
            split=self._inputs.splits["dev"],
            batches=self._batches_of("dev"),
            task=self.config.task,
            labels=self._inputs.data.labels,
            history=self._history(),
            beat=beat,
        )
        self._best_when_saved: set[int] = set()
        if self._process.topology.is_first and self._validation.best_step == state.step:
            # Whoever wrote this checkpoint may have died before it was kept.
            _keep_best(self._folder, state.step)
        return self._validation

    def before_save(self, state: TrainState) -> None:
        """Remember whether it is the best so far."""
        if self._validation.best_step == state.step:
            self._best_when_saved.add(state.step)

    def after_commit(self, step: int) -> None:
        """Keep the checkpoint that was the best when it was saved."""
        if step in self._best_when_saved:
            _keep_best(self._folder, step)

    def finish(self, state: TrainState, beat: Callable[[], None]) -> None:
        """Collective: score the best checkpoint, unless training was stopped before its end."""
        is_trained = state.step >= self.train_config.total_steps or self._validation.is_satisfied
        if is_trained:
            self._score(beat)

    def _score(self, beat: Callable[[], None]) -> None:
        """Collective: write what the best checkpoint scores."""
        del self.batches  # frees a teacher's memory for the engine that scores
        best = self._agree_on_best()
        module = self.build_module()
        engine, sparsity = build_restored_engine(
            module,
            self.weights(module),
            resume_start(best),
            optimizer=self.train_config,
            zero=self.config.zero,
            sparsity=self.sparsity,
            accumulation_steps=1,
            device=self._process.topology.device,
        )
        names = ["dev"]
        if self.config.score_test and self.config.task.test is not None:
            names.append("test")
        found = {
            name: predict(
                engine,
                self._inputs.splits[name],
                self._batches_of(name),
                task=self.config.task,
                labels=self._inputs.data.labels,
                beat=beat,
            )
            for name in names
        }
        if self._process.topology.is_first:
            write_results(
                self._folder,
                found,
                config=self.config,
                inputs=self._inputs,
                best=best,
                total_steps=self.train_config.total_steps,
                sparsity=sparsity.state if sparsity is not None else None,
            )

    def _batches_of(self, split: str) -> TaskBatches:
        """This rank's batches of a split."""
        return TaskBatches(
            self._inputs.splits[split].rows,
            pad_id=self._inputs.vocabulary.pad_id,
            seed=self.config.seed,
            global_batch_rows=self.config.train.global_batch_rows,
            micro_batch_rows=self.config.train.micro_batch_rows,
            rank=self._process.topology.rank,
            world_size=self._process.topology.world_size,
            evaluation=split != "train",
        )

    def _history(self) -> list[tuple[int, float]]:
        """Collective: what dev scored before the restored step, as rank 0's metrics say."""
        key = f"dev/{self.config.task.main_metric}"
        found = []
        if self._process.topology.is_first:
            records = read_metrics(self._folder.metrics_file)
            found = [(record["step"], record[key]) for record in records if key in record]
        return [(int(step), float(score)) for step, score in broadcast_json(found)]

    def _agree_on_best(self) -> Checkpoint:
        """Collective: the checkpoint that dev chose, the same for all ranks."""
        chosen = find_best(self._history())
        step = broadcast_json(
            self._keep_chosen(chosen) if self._process.topology.is_first else None
        )
        if step is None:
            raise RuntimeError(f"{self._folder.best} has no checkpoint")
        return Checkpoint(step_folder(self._folder.best, step))

    def _keep_chosen(self, chosen: int | None) -> int | None:
        """The step to score: `chosen`, unless its checkpoint could not be written or kept."""
        kept = list_steps(self._folder.best)
        if chosen is None or chosen in kept:
            return kept[-1] if chosen is None and kept else chosen
        if chosen in list_steps(self._folder.checkpoints):
            with suppress(OSError):  # the other ranks wait to hear which it is
                _keep_best(self._folder, chosen)  # it could not be when it was written
                return chosen
        if kept:
            append_event(
                self._folder.events_file,
                "checkpoint",
                f"step {chosen} was best on dev, and its checkpoint could not be kept: step "
                f"{kept[-1]} is scored in its place",
            )
        return kept[-1] if kept else None


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
