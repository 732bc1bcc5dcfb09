"""Checks everything that can be wrong with a run before a process is started for it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert.corpora.shards import open_corpus
from bert.corpora.unigram import load_unigram_counts
from bert.restoring import check_source
from bert.vocabulary import load_vocabulary
from distributed.checkpoint import MANIFEST, find_newest
from launch.configuration import PretrainConfig, dump_yaml
from launch.run_folder import (
    check_identity,
    identity,
    resolve_source,
    run_folder_of,
    write_identity,
)


@dataclass(frozen=True)
class RunPlan:
    """A run that may start: JSON, for it travels to the workers."""

    identity: dict[str, Any]
    init_from: str | None  # the checkpoint or Hugging Face folder that model.init_from means
    finished_steps: int  # of the newest good checkpoint; 0 for a new run

    @property
    def source(self) -> Path | None:
        """`init_from` as a path."""
        return Path(self.init_from) if self.init_from is not None else None


def set_up_run(config: PretrainConfig) -> RunPlan:
    """`check_run`, then `begin_run`."""
    plan = check_run(config)
    begin_run(config, plan)
    return plan


def check_run(config: PretrainConfig) -> RunPlan:
    """Check data, vocabulary, first weights and the run folder; writes nothing.

    Args:
        config: with absolute paths.

    Raises:
        BadInput: one sentence on what to change.
    """
    folder = run_folder_of(config)
    vocabulary = load_vocabulary(config.model.vocab)
    corpus = open_corpus(config.data.shards, vocabulary=vocabulary, verify=True)
    for validation_folders in config.evaluation.sets.values():
        open_corpus(validation_folders, vocabulary=vocabulary, verify=True)
        for validation_folder in validation_folders:
            load_unigram_counts(validation_folder, vocabulary=vocabulary)
    newest, _ = find_newest(folder.checkpoints)
    source = None
    if config.model.init_from is not None:
        source = resolve_source(config.model.init_from)
        if newest is None:
            check_source(source, config.model)
    fields = identity(
        config,
        data_fingerprint=corpus.fingerprint,
        vocab_sha256=vocabulary.sha256,
        init_fingerprint=_fingerprint(source) if source is not None else None,
    )
    check_identity(folder, fields)
    return RunPlan(
        identity=fields,
        init_from=str(source) if source is not None else None,
        finished_steps=newest.step if newest is not None else 0,
    )


def begin_run(config: PretrainConfig, plan: RunPlan) -> None:
    """Write what a run begins with, and take back a request to stop it."""
    folder = run_folder_of(config)
    folder.create()
    if not folder.identity_file.exists():
        write_identity(folder, plan.identity)
    folder.write_config(dump_yaml(config))
    folder.stop_file.unlink(missing_ok=True)


def _fingerprint(source: Path) -> str:
    """A hash of a model's content: its manifest holds checksums, a folder's weights are read."""
    files = [source / MANIFEST] if (source / MANIFEST).exists() else _weight_files(source)
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
