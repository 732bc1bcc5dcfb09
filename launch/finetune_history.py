"""What a fine-tuning run read when it began, and what its files give under the rules of today.

A run records the rules of reading (`task.reading` in its identity) beside the fingerprint of its
examples. Runs without it are older. As long as their files give the same examples they go on;
otherwise the rules are named, not the files. A finished run stays finished.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bert.tasks.configuration import TaskConfig
from bert.tasks.sources import UnreadableFile
from bert.tasks.splits import READING_RULES
from bert.vocabulary import Vocabulary
from distributed.checkpoint import Checkpoint
from distributed.errors import BadInput
from launch.finetune_configuration import FinetuneConfig
from launch.finetune_inputs import Inputs, read_inputs
from launch.finetune_results import read_results
from launch.run_folder import FREE_TRAIN_FIELDS, RunFolder, check_identity, run_folder_of
from launch.run_setup import identify_teacher

# Of a finished run: its scores stay, and are of what it read.
OTHER_EXAMPLES = (
    "was read under earlier rules of reading task files; its files give other examples today, or "
    "are refused"
)
_SPLITS = {"train", "dev", "test"}


def is_scored(config: FinetuneConfig) -> bool:
    """Whether the run of one seed has all the scores that `config` asks for."""
    results = read_results(run_folder_of(config))
    if results is None:
        return False
    return not config.score_test or config.task.test is None or results.get("test") is not None


def read_begun_identity(folder: RunFolder) -> dict[str, Any] | None:
    """The identity of the fine-tuning run that has begun in `folder`; None if none has."""
    try:
        identity = json.loads(folder.identity_file.read_text(encoding="utf-8"))
        is_whole = "dimensions" in identity["model"] and "fingerprint" in identity["task"]
        return identity if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_unchanged(
    config: FinetuneConfig,
    *,
    fingerprint_of_model: Callable[[Path], str],
    fingerprint_of_data: Callable[[TaskConfig], str],
) -> bool:
    """See that what is in the run's folder, if anything, has this configuration, model and data.

    Unlike `check_finetune` it takes no change of the model for history. Reading models and data
    takes a while and many runs share them, so how to is the caller's to say and to remember.

    Returns:
        Whether the run read the examples of today, or nothing yet. A finished run stays as it is if
        it read others by earlier rules.

    Raises:
        BadInput: it has not.
    """
    folder = run_folder_of(config)
    old = read_begun_identity(folder)
    if old is None:
        return True
    model = {**old["model"], "init_fingerprint": fingerprint_of_model(config.model.init_from)}
    now: str | None
    try:
        now = fingerprint_of_data(config.task)
    except UnreadableFile:
        raise
    except BadInput:
        if not _is_history(config, old):
            raise
        now = None
    if _is_history(config, old) and now != old["task"]["fingerprint"]:
        now = None
    configured = configured_identity(
        config,
        data=identify_data(old, now),
        distillation=identify_teacher(config.distillation, fingerprint_of_model),
    )
    check_identity(folder, {**old, **configured, "model": model})
    return now is not None


def identify_data(old: Mapping[str, Any] | None, fingerprint: str | None) -> dict[str, Any]:
    """What of its data makes a run that run: the examples, and by which rules they were read.

    Args:
        old: the identity of the run that has begun, if one has.
        fingerprint: of the examples as they are read now; None leaves the run's own.
    """
    began = {key: old["task"].get(key) for key in ("fingerprint", "reading")} if old else {}
    if began and fingerprint in (None, began["fingerprint"]):
        return began
    return {"fingerprint": fingerprint, "reading": READING_RULES}


def read_begun_task(
    config: FinetuneConfig,
    vocabulary: Vocabulary,
    *,
    old: Mapping[str, Any] | None,
    newest: Checkpoint | None,
) -> Inputs | None:
    """Read the splits; None if a finished run has read others, by earlier rules.

    Raises:
        BadInput: they cannot be read.
    """
    labels = newest.state.get("labels") if newest is not None else None
    begun_labels = [str(label) for label in labels] if isinstance(labels, list) else None
    try:
        inputs = read_inputs(config, vocabulary, begun_labels=begun_labels)
    except UnreadableFile:
        raise
    except BadInput as error:
        if old is None or not _is_older(old):
            raise
        if is_scored(config):
            return None
        raise BadInput(
            f"{error} ({run_folder_of(config).path} began under earlier rules of reading task "
            "files, which may have taken this)"
        ) from None
    is_other = old is not None and inputs.data.fingerprint != old["task"].get("fingerprint")
    return None if is_other and _is_history(config, old) else inputs


def _is_history(config: FinetuneConfig, old: Mapping[str, Any] | None) -> bool:
    """Whether a run is done that read its files by earlier rules: it is not read again."""
    return old is not None and _is_older(old) and is_scored(config)


def _is_older(old: Mapping[str, Any]) -> bool:
    return (old["task"].get("reading") or 1) < READING_RULES


def configured_identity(
    config: FinetuneConfig, *, data: Mapping[str, Any], distillation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The part of a run's identity that its configuration says."""
    return {
        "seed": config.seed,
        "task": {**config.task.model_dump(mode="json", exclude=_SPLITS), **data},
        "train": config.train.model_dump(mode="json", exclude=FREE_TRAIN_FIELDS),
        "distillation": distillation,
    }
