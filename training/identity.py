"""What makes a run that run: two starts with equal identities are one run."""

import json
from collections.abc import Mapping
from typing import Any

from distributed.errors import BadInput
from distributed.files import write_json
from training.folder import RunFolder

# Fields of the train section that change how a run is computed or told, or whether it goes on after
# a fault, not what it computes.
FREE_TRAIN_FIELDS = {
    "micro_batch_rows",
    "log_interval_steps",
    "on_non_finite",
    "max_non_finite_steps",
}


# What a user knows a fingerprint by.
_LABELS = {
    "data.fingerprint": "the content of data.shards",
    "model.vocab_sha256": "the content of model.vocab",
    "model.init_fingerprint": "the content of model.init_from",
    "task.fingerprint": "the content of task.train, task.dev or task.test",
    "distillation.teacher": "the content of distillation.teacher",
}


def check_identity(folder: RunFolder, identity: Mapping[str, Any]) -> bool:
    """Refuse a folder that holds another run.

    Returns:
        Whether the folder holds this run already; False if it holds none.

    Raises:
        BadInput: listing the fields that differ, with old and new value.
    """
    try:
        old = json.loads(folder.identity_file.read_text())
    except FileNotFoundError:
        # A checkpoint is only ever written after the identity: without one, whose is it?
        if any(folder.checkpoints.glob("step-*")):
            raise BadInput(
                f"{folder.path} has checkpoints but no {folder.identity_file.name}: choose another "
                "name or remove that folder"
            ) from None
        return False
    except (OSError, ValueError):
        old = None
    if not isinstance(old, dict):
        raise BadInput(
            f"{folder.identity_file} is not readable: choose another name or remove {folder.path}"
        )
    # Through JSON, as the old one went: a tuple is a list then.
    differences = _compare(old, json.loads(json.dumps(identity)))
    if not differences:
        return True
    if list(differences) == ["train.total_steps"]:
        was, now = differences["train.total_steps"]
        if now > was:
            raise BadInput(
                f"{folder.path} is a run of {was} steps and cannot be extended to {now}, because "
                "its learning rate was planned for the former: give the new run another name and "
                f"set model.init_from to {folder.path}"
            )
    changes = ", ".join(
        f"{_LABELS.get(key, key)} was {_show(key, was)} and is now {_show(key, now)}"
        for key, (was, now) in differences.items()
    )
    raise BadInput(
        f"{folder.path} holds a run of another identity ({changes}): choose another name or "
        "restore the old values"
    )


def write_identity(folder: RunFolder, identity: Mapping[str, Any]) -> None:
    """Record the identity, at the first start."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.identity_file, identity)


def _compare(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each field that differs, by dotted name.

    Null is absent: a run goes on with later code that knows one more option, while that is off.
    """
    differences: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            differences |= _compare(was, now, f"{prefix}{key}.")
        elif was != now:
            differences[prefix + key] = was, now
    return differences


def _show(key: str, value: Any) -> str:
    # Of a checksum the first digits tell enough.
    return value[:12] if key in _LABELS and value else json.dumps(value)
