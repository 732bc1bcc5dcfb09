"""A run's folder on disk: its layout, what makes the run that run, and its metrics file.

    runs/<name>/config.yaml      the resolved configuration of the last start
                identity.json    what may not change between starts
                metrics.jsonl    one JSON object a log step
                events.jsonl     what happened besides, one JSON object an event
                passed-over.json batches left out after a return to a checkpoint
                tensorboard/  checkpoints/step-00000050/  logs/  ray/<attempt>/
                cache/           packing indices, computed again if removed
                stop             a request to save and stop

Light on purpose: the command line and the driver read it without importing torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.errors import BadInput
from distributed.files import write_atomically, write_json

if TYPE_CHECKING:
    from launch.configuration import PretrainConfig
    from launch.finetune_configuration import FinetuneConfig

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


@dataclass(frozen=True)
class RunFolder:
    """Where each part of a run lies."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def identity_file(self) -> Path:
        return self.path / "identity.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def passed_over_file(self) -> Path:
        """Batches that a return to a checkpoint left out for good."""
        return self.path / "passed-over.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def cache(self) -> Path:
        """Packing indexes, computed once."""
        return self.path / "cache"

    @property
    def stop_file(self) -> Path:
        """Its presence asks the run to save and stop at the next step's end."""
        return self.path / "stop"

    @property
    def best(self) -> Path:
        """Of fine-tuning: the checkpoint that the dev split chose, a folder in here."""
        return self.path / "best"

    @property
    def results_file(self) -> Path:
        """Of fine-tuning: the scores, there once training is done."""
        return self.path / "results.json"

    @property
    def vocab_file(self) -> Path:
        """Of fine-tuning: the vocabulary of the model that it started from."""
        return self.path / "vocab.txt"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    def create(self) -> None:
        """Make the folders that every run has."""
        for folder in (self.tensorboard, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    def write_config(self, text: str) -> None:
        """Replace `config.yaml`."""
        write_atomically(self.config_file, text.encode())


def run_folder_of(config: "PretrainConfig | FinetuneConfig") -> RunFolder:
    """The folder of the run that `config` describes."""
    return RunFolder(config.launch.runs_dir / config.name)


def identity(
    config: "PretrainConfig",
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, less torn lines; none if there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := parse_record(line)) is not None]


def last_step(path: Path) -> int:
    """The last step in a metrics file; 0 if there is none."""
    return max((int(record.get("step", 0)) for record in read_metrics(path)), default=0)


def validation_by_step(path: Path) -> dict[int, float | None]:
    """The validation loss at each step where it was measured: the mean over the sets, or dev's."""
    found: dict[int, float | None] = {}
    for record in read_metrics(path):
        losses = [
            value
            for key, value in record.items()
            if key == "dev/loss" or (key.startswith("validation/") and key.endswith("/mlm_loss"))
        ]
        if losses and all(isinstance(loss, float) for loss in losses):
            found[record["step"]] = sum(losses) / len(losses)
    return found


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the records after `step`, and torn lines; what stays keeps its bytes."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if _is_kept(line, step)]
    if kept != lines:
        write_atomically(path, b"".join(kept))


def parse_record(line: bytes) -> dict[str, Any] | None:
    """One line of a metrics file; None if it is torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


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


def _is_kept(line: bytes, step: int) -> bool:
    record = parse_record(line)
    return line.endswith(b"\n") and record is not None and record.get("step", 0) <= step
