"""What a fine-tuning run read when it began, and what its files give under the rules of today.

A run records the rules of reading (`task.reading` in its identity) beside the fingerprint of its
examples. Runs without it are older. As long as their files give the same examples they go on. If
newer rules shaped other ones, these rules are named; otherwise the files have changed. A finished
run stays finished.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bert.origins import identify_teacher
from bert.tasks.config import TaskConfig
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.formats.sources import UnreadableFile
from bert.tasks.inputs import Inputs, read_inputs
from bert.tasks.scores import read_results
from bert.tasks.splits import READING_RULES, TaskData
from bert.vocabulary import Vocabulary
from distributed.checkpoint.reading import Checkpoint
from distributed.errors import BadInput
from training.folder import RunFolder, run_folder_of
from training.identity import FREE_TRAIN_FIELDS, check_identity

T = TypeVar("T")
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
    read_data: Callable[[TaskConfig], TaskData],
) -> bool:
    """See that what is in the run's folder, if anything, has this configuration, model and data.

    Unlike in `check_finetuning`, a changed model is an error here. Reading models and data is slow
    and many runs share them, so the caller passes functions that remember.

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
    data = _read(config, lambda: read_data(config.task), old, lambda data: data)
    configured = configured_identity(
        config,
        data=identify_data(old, data),
        distillation=identify_teacher(config.distillation, fingerprint_of_model),
    )
    check_identity(folder, {**old, **configured, "model": model})
    return data is not None


def read_begun_task(
    config: FinetuneConfig,
    vocabulary: Vocabulary,
    *,
    old: Mapping[str, Any] | None,
    newest: Checkpoint | None,
) -> Inputs | None:
    """Read the splits; None if a finished run has read others, by earlier rules.

    Raises:
        BadInput: they cannot be read, or a run that is not finished has read others.
    """
    labels = newest.state.get("labels") if newest is not None else None
    begun_labels = [str(label) for label in labels] if isinstance(labels, list) else None

    def read() -> Inputs:
        return read_inputs(config, vocabulary, begun_labels=begun_labels)

    return _read(config, read, old, lambda inputs: inputs.data)


def identify_data(old: Mapping[str, Any] | None, data: TaskData | None) -> dict[str, Any]:
    """What of its data makes a run that run: the examples, and by which rules they were read.

    Args:
        old: the identity of the run that has begun, if one has; it keeps its rules.
        data: what the files give now; None leaves the run's own.
    """
    reading = old["task"].get("reading") if old is not None else READING_RULES
    if data is None:
        assert old is not None
        return {"fingerprint": old["task"]["fingerprint"], "reading": reading}
    return {"fingerprint": data.fingerprint, "reading": reading}


def _read(
    config: FinetuneConfig,
    read: Callable[[], T],
    old: Mapping[str, Any] | None,
    data_of: Callable[[T], TaskData],
) -> T | None:
    """What `read` gives; None if a finished run has read something else by earlier rules.

    Raises:
        BadInput: the files cannot be read, or a run that is not finished has read something else.
    """
    is_older = old is not None and (old["task"].get("reading") or 1) < READING_RULES
    folder = run_folder_of(config).path
    try:
        found = read()
    except UnreadableFile:
        raise
    except BadInput as error:
        if not is_older:
            raise
        if is_scored(config):
            return None
        raise BadInput(
            f"{error} ({folder} began under earlier rules of reading task files, which may have "
            "taken this)"
        ) from None
    if old is None or not is_older or data_of(found).fingerprint == old["task"]["fingerprint"]:
        return found
    rules = ", ".join(data_of(found).newer_rules)
    if not rules:
        return found  # under the earlier rules the examples are the same, so the files have changed
    if is_scored(config):
        return None
    raise BadInput(
        f"{folder} began under earlier rules of reading task files, and task.train, task.dev or "
        f"task.test give other examples under today's ({rules}): give the new run another name, or "
        "finish this one with the version that began it"
    )


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
