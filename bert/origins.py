"""What a run was made from, by content: its first weights and its teacher."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bert.config import DistillationConfig
from training.folder import RunFolder


def resolve_teacher(
    distillation: DistillationConfig | None, teacher: str | None = None
) -> DistillationConfig | None:
    """The same settings with the path of one checkpoint.

    A run's path means its newest checkpoint, which changes while the run trains. `teacher` is the
    checkpoint that was found before; without it, find and verify one.

    Raises:
        BadInput: there is no such teacher.
    """
    if distillation is None:
        return None
    from bert.folders.model_files import find_model, path_of

    path = Path(teacher) if teacher is not None else path_of(find_model(distillation.teacher))
    return distillation.model_copy(update={"teacher": path})


def teacher_path(distillation: DistillationConfig | None) -> str | None:
    """The teacher's path, if there is one."""
    return str(distillation.teacher) if distillation is not None else None


def digests_of(identity: Mapping[str, Any]) -> dict[str, str | None]:
    """The fingerprints in a run's identity by the names that TensorBoard shows."""
    data = identity["data"] if "data" in identity else identity["task"]
    return {
        "data": data["fingerprint"],
        "vocabulary": identity["model"]["vocab_sha256"],
        "first weights": identity["model"]["init_fingerprint"],
    }


def fingerprint_first_weights(
    folder: RunFolder, init_from: Path | None, old: str | None
) -> str | None:
    """The fingerprint of the first weights of a run that goes on.

    If config.yaml still names the same source, reuse `old`: that source may have moved, changed or
    gone since. Otherwise fingerprint the new source.

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

    `fingerprint_of` gives the teacher's fingerprint; None takes a teacher that resolve_teacher has
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
    from bert.folders.model_files import compute_fingerprint, find_model

    return compute_fingerprint(find_model(path, verified=verified))
