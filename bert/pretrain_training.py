"""Pretraining as a worker trains it; the recipe is in pretrain.py."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bert.architecture import SHORT_TITLES
from bert.config import PretrainConfig
from bert.corpora.batches import build_training_batches
from bert.evaluation import build_evaluator
from bert.folders.model_files import read_verified
from bert.folders.source import open_source
from bert.model import PretrainingModel, build_model, flops_per_token, list_weights
from bert.origins import digests_of
from bert.teacher import DistilledBatches, load_teacher
from bert.transfer import transfer_start
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.errors import BadInput
from training.batches import Validation
from training.process import WorkerProcess
from training.recipe import RunPlan, Trainable
from training.start import Start, fresh_start
from training.state import TrainState, Weight


class MaskedLanguageModelling(Trainable):
    """One pretraining run in one of its processes."""

    config: PretrainConfig

    def __init__(self, config: PretrainConfig, plan: RunPlan, process: WorkerProcess) -> None:
        """Open the corpus and load the teacher."""
        self.config, self._plan, self._process = config, plan, process
        self._vocabulary = load_vocabulary(config.model.vocab)
        batches = build_training_batches(
            config.data,
            vocabulary=self._vocabulary,
            seed=config.seed,
            global_batch_rows=config.train.global_batch_rows,
            micro_batch_rows=config.train.micro_batch_rows,
            rank=process.topology.rank,
            world_size=process.topology.world_size,
            cache_dir=process.folder.cache,
        )
        teacher = build_teacher(config, self._vocabulary, device=process.topology.device)
        self.batches = batches if teacher is None else DistilledBatches(batches, teacher)
        self.train_config, self.sparsity = config.train, config.sparsity
        self.save_interval_steps = config.checkpoint.interval_steps
        self.flops_per_token = flops_per_token(
            config.model,
            vocab_size=config.model.count_rows(self._vocabulary.size),
            max_seq_len=config.data.max_seq_len,
            mlm_probability=config.data.mlm_probability,
        )
        self.matrix_titles = SHORT_TITLES
        self.digests = digests_of(plan.identity)
        self.described = {"config": config.model_dump(mode="json")}

    def build_module(self) -> PretrainingModel:
        """The run's model with new weights."""
        return build_new_model(self.config, self._vocabulary)

    def weights(self, module: nn.Module) -> list[Weight]:
        """BERT's, by canonical name."""
        return list_weights(module)

    def first_start(self, module: nn.Module) -> Start:
        """New weights, or those of model.init_from."""
        if self._plan.init_from is None:
            return fresh_start(self.weights(module))
        source = Path(self._plan.init_from)
        return transfer_start(source, read_verified(source), module, sparsity=self.sparsity)

    def validation(self, state: TrainState, beat: Callable[[], None]) -> Validation:
        """The loss on evaluation.sets."""
        return build_evaluator(
            self.config.evaluation,
            self.config.data,
            vocabulary=self._vocabulary,
            micro_batch_rows=self.config.train.micro_batch_rows,
            topology=self._process.topology,
            cache_dir=self._process.folder.cache,
        )


def build_new_model(config: PretrainConfig, vocabulary: Vocabulary) -> PretrainingModel:
    """The run's model with new weights."""
    return build_model(
        config.model,
        vocab_size=config.model.count_rows(vocabulary.size),
        pad_id=vocabulary.pad_id,
        hidden_dropout=config.train.hidden_dropout,
        attention_dropout=config.train.attention_dropout,
        seed=config.seed,
        distillation=config.distillation,
    )


def build_teacher(
    config: PretrainConfig, vocabulary: Vocabulary, *, device: torch.device | str
) -> PretrainingModel | None:
    """The model that distillation.teacher names; None without one.

    Raises:
        BadInput: it is not there, has another vocabulary, or lacks the language modelling head.
    """
    if config.distillation is None:
        return None
    field = "distillation.teacher"
    teacher = open_source(  # resolve_teacher has verified it
        config.distillation.teacher, field=field, vocabulary=vocabulary, verified=True
    )
    rows = teacher.config.count_rows(vocabulary.size)
    if rows != config.model.count_rows(vocabulary.size):
        raise BadInput(
            f"{field}: {teacher.path} has {rows} rows of word embeddings, and the model "
            f"{config.model.count_rows(vocabulary.size)}: set model.vocab_rows={rows}"
        )
    module = build_model(
        teacher.config,
        vocab_size=rows,
        pad_id=vocabulary.pad_id,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        seed=0,
    )
    load_teacher(
        module, teacher.path, device=torch.device(device), precision=config.train.precision
    )
    return module
