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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.files import write_atomically

if TYPE_CHECKING:
    from training.config import RunConfig


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


def run_folder_of(config: "RunConfig") -> RunFolder:
    """The folder of the run that `config` describes."""
    return RunFolder(config.launch.runs_dir / config.name)


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


def _is_kept(line: bytes, step: int) -> bool:
    record = parse_record(line)
    return line.endswith(b"\n") and record is not None and record.get("step", 0) <= step
