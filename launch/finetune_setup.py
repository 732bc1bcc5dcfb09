"""Checks everything that can be wrong with a fine-tuning run before a process is started for it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bert.configuration import ModelConfig
from bert.restoring import transfer_start
from bert.source import Source, open_source, refuse_control
from bert.tasks.configuration import TaskConfig
from bert.tasks.model import TaskModel, build_task_model
from bert.teacher import load_teacher
from bert.vocabulary import load_vocabulary
from distributed.errors import BadInput
from distributed.zero import check_advanced
from launch.attempt import find_start
from launch.finetune_configuration import FinetuneConfig
from launch.finetune_inputs import Inputs, read_inputs
from launch.finetune_results import read_results
from launch.run_folder import (
    FREE_TRAIN_FIELDS,
    RunFolder,
    check_identity,
    run_folder_of,
)
from launch.run_setup import (
    FinetunePlan,
    begin_run,
    begun_with,
    identify_teacher,
    settle_teacher,
    teacher_of,
)
from sparsity.schedule import SparsityConfig

_SPLITS = {"train", "dev", "test"}


def check_finetune(config: FinetuneConfig) -> FinetunePlan:
    """Check data, first weights and the run folder; writes nothing.

    Args:
        config: of one seed, with absolute paths.

    Raises:
        BadInput: one sentence on what to change.
    """
    config, folder = settle_teacher(config), run_folder_of(config)
    check_advanced(config.zero)
    newest, _ = find_start(folder)
    source: Source | None = None
    old = _read_identity(folder)
    if old is not None and newest is not None:
        model = ModelConfig.model_validate(
            {**old["model"]["dimensions"], "vocab": folder.vocab_file}
        )
        vocabulary = load_vocabulary(
            folder.vocab_file,
            lower_case=old["model"]["lower_case"],
            settings=old["model"].get("tokenizer") or {},
        )
        sparsity = old["sparsity"]
        before = old["model"]["init_fingerprint"]
        init_fingerprint = begun_with(folder, config.model.init_from, before)
    else:
        source = open_source(config.model.init_from, vocab=config.model.vocab)
        refuse_control(source)
        assert source.vocabulary is not None
        model, vocabulary = source.config, source.vocabulary
        sparsity = {"schedule": "frozen"} if source.is_pruned else None
        init_fingerprint = source.fingerprint
    if config.task.max_seq_len > model.max_position_embeddings:
        raise BadInput(
            f"task.max_seq_len ({config.task.max_seq_len}) is above the "
            f"{model.max_position_embeddings} positions of {config.model.init_from}: lower it"
        )
    inputs = read_inputs(config, vocabulary)
    if source is not None:
        transfer_start(
            source.path,
            source.read(),
            build_new_task_model(config, model, inputs),
            sparsity=_sparsity_config(sparsity),
            encoder_only=True,
        )
    build_task_teacher(config, inputs, device=torch.device("cpu"))
    teacher = identify_teacher(config.distillation)
    settings = vocabulary.settings.changed()
    fields = {
        **_configured(config, data_fingerprint=inputs.data.fingerprint, distillation=teacher),
        "model": {
            "dimensions": model.for_identity(),
            "lower_case": vocabulary.lower_case,
            **({"tokenizer": settings} if settings else {}),
            "vocab_sha256": vocabulary.sha256,
            "init_fingerprint": init_fingerprint,
        },
        "sparsity": sparsity,
    }
    check_identity(folder, fields)
    return FinetunePlan(
        identity=fields,
        init_from=str(source.path) if source is not None else None,
        teacher=teacher_of(config),
        finished_steps=newest.step if newest is not None else 0,
        total_steps=config.train.plan(len(inputs.splits["train"].rows)).total_steps,
        is_complete=is_scored(config),
        model=model.model_dump(mode="json"),
        tokenizer=vocabulary.record(),
        sparsity=sparsity,
    )


def check_unchanged(
    config: FinetuneConfig,
    *,
    fingerprint_of_model: Callable[[Path], str],
    fingerprint_of_data: Callable[[TaskConfig], str],
) -> None:
    """See that what is in the run's folder, if anything, has this configuration, model and data.

    Unlike `check_finetune` it takes no change of the model for history. Reading models and data
    takes a while and many runs share them, so how to is the caller's to say and to remember.

    Raises:
        BadInput: it has not.
    """
    folder = run_folder_of(config)
    old = _read_identity(folder)
    if old is None:
        return
    model = {**old["model"], "init_fingerprint": fingerprint_of_model(config.model.init_from)}
    configured = _configured(
        config,
        data_fingerprint=fingerprint_of_data(config.task),
        distillation=identify_teacher(config.distillation, fingerprint_of_model),
    )
    check_identity(folder, {**old, **configured, "model": model})


def _configured(
    config: FinetuneConfig, *, data_fingerprint: str, distillation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The part of a run's identity that its configuration says."""
    return {
        "seed": config.seed,
        "task": {
            **config.task.model_dump(mode="json", exclude=_SPLITS),
            "fingerprint": data_fingerprint,
        },
        "train": config.train.model_dump(mode="json", exclude=FREE_TRAIN_FIELDS),
        "distillation": distillation,
    }


def begin_finetune(config: FinetuneConfig, plan: FinetunePlan) -> None:
    """Write what a run begins with, the vocabulary too: the run needs its source no more."""
    folder = run_folder_of(config)
    begin_run(config, plan)
    vocab = Path(plan.model["vocab"])
    if vocab != folder.vocab_file:
        load_vocabulary(vocab, **plan.tokenizer).write(folder.vocab_file)


def build_new_task_model(config: FinetuneConfig, model: ModelConfig, inputs: Inputs) -> TaskModel:
    """The run's model with new weights."""
    one_number = {"regression": 1, "question_answering": 2}
    return build_task_model(
        model,
        kind=config.task.kind,
        num_outputs=one_number.get(config.task.kind, len(inputs.data.labels)),
        vocab_size=model.count_rows(inputs.vocabulary.size),
        pad_id=inputs.vocabulary.pad_id,
        hidden_dropout=config.train.hidden_dropout,
        attention_dropout=config.train.attention_dropout,
        seed=config.seed,
        distillation=config.distillation,
    )


def build_task_teacher(
    config: FinetuneConfig, inputs: Inputs, *, device: torch.device
) -> TaskModel | None:
    """The fine-tuned model that distillation.teacher names; None without one.

    Raises:
        BadInput: it is not there, has another vocabulary, other labels or another task's head, or
            reads less of a text.
    """
    if config.distillation is None:
        return None
    field = "distillation.teacher"
    teacher = open_source(  # settle_teacher has verified it
        config.distillation.teacher, field=field, vocabulary=inputs.vocabulary, verified=True
    )
    refuse_control(teacher, field=field)
    if teacher.labels is not None and teacher.labels != list(inputs.data.labels):
        raise BadInput(
            f"{field}: {teacher.path} tells {', '.join(teacher.labels)} apart, in this order, and "
            f"the task {', '.join(inputs.data.labels) or 'no labels'}: give a model of this task"
        )
    positions = teacher.config.max_position_embeddings
    if config.task.max_seq_len > positions:
        raise BadInput(
            f"task.max_seq_len ({config.task.max_seq_len}) is above the {positions} positions of "
            f"{field} {teacher.path}: lower it"
        )
    student = config.model_copy(update={"distillation": None})
    module = build_new_task_model(student, teacher.config, inputs)
    load_teacher(module, teacher.path, device=device, precision=config.train.precision)
    return module


def is_scored(config: FinetuneConfig) -> bool:
    """Whether the run of one seed has all the scores that `config` asks for."""
    results = read_results(run_folder_of(config))
    if results is None:
        return False
    return not config.score_test or config.task.test is None or results.get("test") is not None


def _read_identity(folder: RunFolder) -> dict[str, Any] | None:
    try:
        identity = json.loads(folder.identity_file.read_text(encoding="utf-8"))
        return identity if "dimensions" in identity["model"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sparsity_config(sparsity: Mapping[str, Any] | None) -> SparsityConfig | None:
    return None if sparsity is None else SparsityConfig.model_validate(sparsity)
