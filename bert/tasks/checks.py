"""Checks everything that can be wrong with a fine-tuning run before a process is started for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bert.config import ModelConfig
from bert.folders.source import Source, open_source
from bert.origins import fingerprint_first_weights, identify_teacher, resolve_teacher, teacher_path
from bert.tasks.building import build_new_task_model, build_task_teacher
from bert.tasks.finetune import FinetunePlan
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.history import (
    configured_identity,
    identify_data,
    is_scored,
    read_begun_identity,
    read_begun_task,
)
from bert.tasks.scores import read_results
from bert.transfer import transfer_start
from bert.vocabulary import load_vocabulary
from distributed.errors import BadInput
from distributed.zero import check_advanced
from sparsity.schedule import SparsityConfig
from training.attempt import find_start
from training.folder import run_folder_of
from training.identity import check_identity

OLD_RULES = "read its files by earlier rules, and they would give other examples today"


def check_finetuning(config: FinetuneConfig) -> FinetunePlan:
    """Check data, first weights and the run folder; writes nothing.

    Args:
        config: of one seed, with absolute paths.

    Raises:
        BadInput: one sentence on what to change.
    """
    folder = run_folder_of(config)
    config = config.model_copy(update={"distillation": resolve_teacher(config.distillation)})
    check_advanced(config.zero)
    newest, _ = find_start(folder)
    source: Source | None = None
    old = read_begun_identity(folder)
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
        init_fingerprint = fingerprint_first_weights(folder, config.model.init_from, before)
    else:
        source = open_source(config.model.init_from, vocab=config.model.vocab)
        assert source.vocabulary is not None
        model, vocabulary = source.config, source.vocabulary
        sparsity = {"schedule": "frozen"} if source.is_pruned else None
        init_fingerprint = source.fingerprint
    if config.task.max_seq_len > model.max_position_embeddings:
        raise BadInput(
            f"task.max_seq_len ({config.task.max_seq_len}) is above the "
            f"{model.max_position_embeddings} positions of {config.model.init_from}: lower it"
        )
    inputs = read_begun_task(config, vocabulary, old=old, newest=newest)
    if inputs is not None:
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
    data = identify_data(old, inputs.data if inputs is not None else None)
    settings = vocabulary.settings.changed()
    fields = {
        **configured_identity(config, data=data, distillation=teacher),
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
    is_complete = is_scored(config)
    if inputs is not None:
        labels, notes = list(inputs.data.labels), [] if is_complete else inputs.notes(config)
        total_steps = config.train.plan(len(inputs.splits["train"].rows)).total_steps
    else:
        results = read_results(folder) or {}
        labels, notes = results.get("labels", []), [f"{folder.path} {OLD_RULES}"]
        total_steps = results.get("total_steps", 0)
    return FinetunePlan(
        identity=fields,
        init_from=str(source.path) if source is not None else None,
        teacher=teacher_path(config.distillation),
        finished_steps=newest.step if newest is not None else 0,
        total_steps=total_steps,
        is_complete=is_complete,
        model=model.model_dump(mode="json"),
        tokenizer=vocabulary.record(),
        sparsity=sparsity,
        labels=labels,
        notes=notes,
    )


def write_vocabulary(config: FinetuneConfig, plan: FinetunePlan) -> None:
    """Give the run's folder the vocabulary of the model that it starts from."""
    folder, vocab = run_folder_of(config), Path(plan.model["vocab"])
    if vocab != folder.vocab_file:
        load_vocabulary(vocab, **plan.tokenizer).write(folder.vocab_file)


def _sparsity_config(sparsity: Mapping[str, Any] | None) -> SparsityConfig | None:
    return None if sparsity is None else SparsityConfig.model_validate(sparsity)
