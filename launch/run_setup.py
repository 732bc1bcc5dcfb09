"""Checks everything that can be wrong with a run before a process is started for it.

What builds a model is imported where that is needed: most starts do not, and torch or transformers
take longer to import than all of the checks.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from bert.configuration import DistillationConfig
from bert.corpora.shards import open_corpus
from bert.corpora.unigram import load_unigram_counts
from bert.vocabulary import Vocabulary, load_vocabulary
from bert.weights import is_prunable, weight_shapes
from distributed.errors import BadInput
from launch.attempt import find_start
from launch.configuration import PretrainConfig, dump_yaml
from launch.finetune_configuration import FinetuneConfig
from launch.lease import hold
from launch.run_folder import (
    RunFolder,
    check_identity,
    identity,
    run_folder_of,
    write_identity,
)
from launch.stopping import forget_signal
from sparsity.targets import build_scopes

if TYPE_CHECKING:
    import torch

    from bert.model import PretrainingModel

AnyRunConfig = PretrainConfig | FinetuneConfig
C = TypeVar("C", PretrainConfig, FinetuneConfig)


@dataclass(frozen=True)
class RunPlan:
    """A run that may start: JSON, for it travels to the workers."""

    identity: dict[str, Any]
    init_from: str | None  # the checkpoint or Hugging Face folder that model.init_from means
    teacher: str | None  # the same of distillation.teacher
    finished_steps: int  # of the newest good checkpoint; 0 for a new run
    total_steps: int
    is_complete: bool  # nothing is left to do

    @property
    def source(self) -> Path | None:
        """`init_from` as a path."""
        return Path(self.init_from) if self.init_from is not None else None


@dataclass(frozen=True)
class FinetunePlan(RunPlan):
    """A fine-tuning run that may start: JSON, for it travels to the workers."""

    model: dict[str, Any]  # a ModelConfig
    tokenizer: dict[str, Any]  # what Vocabulary.record() says
    sparsity: dict[str, Any] | None  # frozen, or None for a dense model
    labels: list[str]  # in the order of the model's outputs
    notes: list[str]  # what to tell before training


def check_run(config: PretrainConfig) -> RunPlan:
    """Check data, vocabulary, first weights and the run folder; writes nothing.

    Args:
        config: with absolute paths.

    Raises:
        BadInput: one sentence on what to change.
    """
    config, folder = settle_teacher(config), run_folder_of(config)
    vocabulary = load_vocabulary(config.model.vocab)
    rows = config.model.count_rows(vocabulary.size)
    corpus = open_corpus(config.data.shards, vocabulary=vocabulary, verify=True)
    for validation_folders in config.evaluation.sets.values():
        open_corpus(validation_folders, vocabulary=vocabulary, verify=True)
        for validation_folder in validation_folders:
            load_unigram_counts(validation_folder, vocabulary=vocabulary)
    if config.zero.advanced:
        from distributed.zero import check_advanced

        check_advanced(config.zero)
    if config.sparsity is not None:
        shapes = weight_shapes(config.model, vocab_size=rows)
        build_scopes(config.sparsity, [name for name in shapes if is_prunable(name)], shapes)
    newest, _ = find_start(folder)
    source_path, init_fingerprint = None, None
    if newest is not None:
        old = newest.section("identity", "model").get("init_fingerprint")
        init_fingerprint = begun_with(folder, config.model.init_from, old)
    elif config.model.init_from is not None:
        from bert.restoring import transfer_start
        from bert.source import check_dimensions, open_source

        source = open_source(config.model.init_from, vocabulary=vocabulary)
        check_dimensions(source, config.model, words=vocabulary.size)
        source_path, init_fingerprint = source.path, source.fingerprint
        module = build_new_model(config, vocabulary)
        transfer_start(source.path, source.read(), module, sparsity=config.sparsity)
    build_teacher(config, vocabulary, device="cpu")
    fields = identity(
        config,
        data_fingerprint=corpus.fingerprint,
        vocab_sha256=vocabulary.sha256,
        init_fingerprint=init_fingerprint,
        distillation=identify_teacher(config.distillation),
        tokenizer=_identify_tokenizer(vocabulary),
    )
    check_identity(folder, fields)
    return RunPlan(
        identity=fields,
        init_from=str(source_path) if source_path is not None else None,
        teacher=teacher_of(config),
        finished_steps=newest.step if newest is not None else 0,
        total_steps=config.train.total_steps,
        is_complete=newest is not None and newest.step >= config.train.total_steps,
    )


@contextmanager
def hold_run(folder: RunFolder, *, say: bool = True) -> Iterator[threading.Event]:
    """Hold the run folder, creating it if need be, and nobody else trains in it meanwhile.

    Yields an event: it was lost to another launcher, after this one was away for too long.

    Raises:
        BadInput: somebody else does, or nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            lost = stack.enter_context(hold(folder.path, say=say))
        except OSError as error:
            raise BadInput(
                f"{folder.path} cannot be written ({error.strerror}): set launch.runs_dir to a "
                "folder that can, or free some space"
            ) from error
        yield lost


def begin_run(config: AnyRunConfig, plan: RunPlan) -> None:
    """Write what a run begins with, or go on with what is there. Its folder is held.

    Raises:
        BadInput: another run has begun there since `check_run` looked.
    """
    folder = run_folder_of(config)
    folder.create()
    check_identity(folder, plan.identity)
    if not folder.identity_file.exists():
        write_identity(folder, plan.identity)
    folder.write_config(dump_yaml(config))
    forget_signal(folder.stop_file)


def build_new_model(config: PretrainConfig, vocabulary: Vocabulary) -> "PretrainingModel":
    """The run's model with new weights."""
    from bert.model import build_model

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
    config: PretrainConfig, vocabulary: Vocabulary, *, device: "torch.device | str"
) -> "PretrainingModel | None":
    """The model that distillation.teacher names; None without one.

    Raises:
        BadInput: it is not there, has another vocabulary, or lacks the language modelling head.
    """
    if config.distillation is None:
        return None
    import torch

    from bert.model import build_model
    from bert.source import open_source, refuse_control
    from bert.teacher import load_teacher

    field = "distillation.teacher"
    teacher = open_source(  # settle_teacher has verified it
        config.distillation.teacher, field=field, vocabulary=vocabulary, verified=True
    )
    refuse_control(teacher, field=field)
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


def settle_teacher(config: C, teacher: str | None = None) -> C:
    """The same configuration with the checkpoint that distillation.teacher means, by default now.

    Later the path may mean another one, of a run that trains on or has ended. Without `teacher` the
    checkpoint is verified.

    Raises:
        BadInput: there is no such teacher.
    """
    if config.distillation is None:
        return config
    from bert.model_files import find_model, path_of

    named = config.distillation.teacher
    settled = Path(teacher) if teacher is not None else path_of(find_model(named))
    distillation = config.distillation.model_copy(update={"teacher": settled})
    return config.model_copy(update={"distillation": distillation})


def teacher_of(config: AnyRunConfig) -> str | None:
    """What distillation.teacher names, if there is one."""
    return str(config.distillation.teacher) if config.distillation is not None else None


def begun_with(folder: RunFolder, init_from: Path | None, old: str | None) -> str | None:
    """The fingerprint of the first weights of a run that goes on.

    As long as the configuration names the same source it is `old`: that source is history, and may
    have moved, trained on or gone. Another source counts by its weights.

    Raises:
        BadInput: another source is named, and has no model.
    """
    if init_from is None:
        return None
    try:
        recorded = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
        is_the_same = recorded["model"]["init_from"] == str(init_from)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        is_the_same = False  # not known: look at the weights
    return old if is_the_same else source_fingerprint(init_from)


def identify_teacher(
    distillation: DistillationConfig | None, fingerprint_of: Callable[[Path], str] | None = None
) -> dict[str, Any] | None:
    """What of `distillation` makes a run that run: the teacher by its weights, not by its path.

    `fingerprint_of` gives the teacher's fingerprint; None takes a teacher that settle_teacher has
    verified.

    Raises:
        BadInput: there is no such teacher.
    """
    if distillation is None:
        return None
    if fingerprint_of is not None:
        teacher = fingerprint_of(distillation.teacher)
    else:
        teacher = source_fingerprint(distillation.teacher, verified=True)
    return {**distillation.model_dump(mode="json", exclude={"teacher"}), "teacher": teacher}


def source_fingerprint(path: Path, *, verified: bool = False) -> str:
    """The fingerprint of what a run, a checkpoint or a Hugging Face folder means as a source.

    Raises:
        BadInput: it means nothing, or is damaged, unless it is `verified` already.
    """
    from bert.model_files import compute_fingerprint, find_model

    return compute_fingerprint(find_model(path, verified=verified))


def _identify_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """How text is read, as far as that is not BERT's way; empty for a plain vocab.txt."""
    fields: dict[str, Any] = {}
    if vocabulary.lower_case == vocabulary.is_cased:  # not what its words alone would say
        fields["lower_case"] = vocabulary.lower_case
    if settings := vocabulary.settings.changed():
        fields["tokenizer"] = settings
    return fields
