"""Pretraining as a recipe: masked language modelling on packed rows of text.

What trains is imported when a worker builds it (pretrain_training.py): a launcher checks a run in
half the time that torch and transformers take to import.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bert.architecture import is_prunable, weight_shapes
from bert.config import PretrainConfig
from bert.corpora.shards import open_corpus
from bert.corpora.unigram import load_unigram_counts
from bert.origins import fingerprint_first_weights, identify_teacher, resolve_teacher, teacher_path
from bert.vocabulary import Vocabulary, load_vocabulary
from sparsity.targets import build_scopes
from training.attempt import find_start
from training.folder import run_folder_of
from training.identity import FREE_TRAIN_FIELDS, check_identity
from training.recipe import Recipe, RunPlan

if TYPE_CHECKING:
    from bert.pretrain_training import MaskedLanguageModelling
    from training.process import WorkerProcess


class Pretraining(Recipe[RunPlan]):
    """The recipe of one pretraining run."""

    config: PretrainConfig
    name = "pretrain"
    config_type = PretrainConfig
    plan_type = RunPlan
    training_module = "bert.pretrain_training"

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config

    def check(self) -> RunPlan:
        """See `check_pretraining`."""
        return check_pretraining(self.config)

    def is_finished(self, plan: RunPlan, finished_steps: int) -> bool:
        """Whether all steps are done."""
        return finished_steps >= plan.total_steps

    def input_files(self) -> dict[str, list[str]]:
        """Manifests of the corpora, and the vocabulary."""
        config = self.config
        sets = [folder for folders in config.evaluation.sets.values() for folder in folders]
        return {
            "data.shards": [str(folder / "manifest.json") for folder in config.data.shards],
            "evaluation.sets": [str(folder / "manifest.json") for folder in sets],
            "model.vocab": [str(config.model.vocab)],
        }

    def build(self, plan: RunPlan, process: "WorkerProcess") -> "MaskedLanguageModelling":
        """Collective: vocabulary, batches and teacher of this process."""
        from bert.pretrain_training import MaskedLanguageModelling

        distillation = resolve_teacher(self.config.distillation, plan.teacher)
        config = self.config.model_copy(update={"distillation": distillation})
        return MaskedLanguageModelling(config, plan, process)


def check_pretraining(config: PretrainConfig) -> RunPlan:
    """Check data, vocabulary, first weights and the run folder; writes nothing.

    Args:
        config: with absolute paths.

    Raises:
        BadInput: one sentence on what to change.
    """
    folder = run_folder_of(config)
    config = config.model_copy(update={"distillation": resolve_teacher(config.distillation)})
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
        init_fingerprint = fingerprint_first_weights(folder, config.model.init_from, old)
    elif config.model.init_from is not None:
        from bert.folders.source import check_dimensions, open_source
        from bert.pretrain_training import build_new_model
        from bert.transfer import transfer_start

        source = open_source(config.model.init_from, vocabulary=vocabulary)
        check_dimensions(source, config.model, words=vocabulary.size)
        source_path, init_fingerprint = source.path, source.fingerprint
        module = build_new_model(config, vocabulary)
        transfer_start(source.path, source.read(), module, sparsity=config.sparsity)
    if config.distillation is not None:
        from bert.pretrain_training import build_teacher

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
        teacher=teacher_path(config.distillation),
        finished_steps=newest.step if newest is not None else 0,
        total_steps=config.train.total_steps,
        is_complete=newest is not None and newest.step >= config.train.total_steps,
    )


def _identify_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """How text is read, as far as that is not BERT's way; empty for a plain vocab.txt."""
    fields: dict[str, Any] = {}
    if vocabulary.lower_case == vocabulary.is_cased:  # not what its words alone would say
        fields["lower_case"] = vocabulary.lower_case
    if settings := vocabulary.settings.changed():
        fields["tokenizer"] = settings
    return fields


def identity(
    config: PretrainConfig,
    *,
    data_fingerprint: str,
    vocab_sha256: str,
    init_fingerprint: str | None,
    distillation: Mapping[str, Any] | None,
    tokenizer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What makes a run that run, as JSON: two starts with equal identities are one run.

    Data, vocabulary, first weights and the teacher in `distillation` count by content, not by path;
    `tokenizer` is how text is read, as far as the vocabulary's file does not say it.
    `launch`, `zero`, `checkpoint`, `evaluation`, micro-batches and logging may change between
    starts.
    """
    model = {
        **config.model.for_identity(),
        "vocab_sha256": vocab_sha256,
        "init_fingerprint": init_fingerprint,
        **(tokenizer or {}),
    }
    data = config.data.model_dump(mode="json", exclude={"shards"})
    return {
        "seed": config.seed,
        "model": model,
        "data": {**data, "fingerprint": data_fingerprint},
        "train": config.train.model_dump(mode="json", exclude=FREE_TRAIN_FIELDS),
        "sparsity": config.sparsity.model_dump(mode="json") if config.sparsity else None,
        "distillation": distillation,
    }
