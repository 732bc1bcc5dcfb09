"""What a checkpoint's manifest says of its run, in types: for showing and exporting it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bert.tasks.config import Kind
from distributed.checkpoint.reading import Checkpoint


class _Part(BaseModel):
    """Whatever is there has the right type; what is absent is unknown."""

    model_config = ConfigDict(strict=True, frozen=True)


class TrainPart(_Part):
    total_steps: int | None = None
    precision: str | None = None


class ZeroPart(_Part):
    stage: int | None = None


class TaskPart(_Part):
    kind: Kind


class ConfigPart(_Part):
    name: str | None = None
    task: TaskPart | None = None  # of fine-tuning
    train: TrainPart = TrainPart()
    zero: ZeroPart = ZeroPart()


class ProgressPart(_Part):
    tokens_seen: int | None = None
    skipped_steps: int | None = None


class SparsityPart(_Part):
    """The run's beliefs about its masks."""

    digest: str | None = None
    pruned: dict[str, int] = {}
    target: float | None = None
    threshold: float | None = None
    last_update_step: int | None = None
    pending: bool = False


class SavedState(_Part):
    """The state in a manifest that this package writes (training/saving.py)."""

    config: ConfigPart = ConfigPart()
    train: ProgressPart = ProgressPart()
    sparsity: SparsityPart | None = None
    zero_stage: int | None = None
    labels: list[str] = []  # of fine-tuning
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}


def read_state(checkpoint: Checkpoint) -> SavedState:
    """The state that a checkpoint was saved with.

    Raises:
        BadCheckpoint: naming the field that is not what it must be.
    """
    try:
        return SavedState.model_validate(checkpoint.state)
    except ValidationError as error:
        raise checkpoint.damaged_at(*map(str, error.errors()[0]["loc"])) from None
