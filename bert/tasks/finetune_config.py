"""The root configuration of fine-tuning: a task, the model to start from, one run for each seed."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from bert.config import DistillationConfig
from bert.tasks.config import FinetuneTrainConfig, TaskConfig
from distributed.config import CheckpointConfig, Config, ZeroConfig
from training.config import LaunchConfig, RunConfig, defaults_of


class SourceConfig(Config):
    """Where the weights come from; dimensions, vocabulary and masks come with them."""

    init_from: Path = Field(
        description="run, checkpoint or Hugging Face folder to start from, as in "
        "model.init_from=runs/demo-general"
    )
    vocab: Path | None = Field(None, description="if it is not where the model says")


class FinetuneConfig(RunConfig):
    """Fine-tuning on one task, complete."""

    name: str = Field(
        coerce_numbers_to_str=True, description="of the folder in launch.runs_dir, a run a seed"
    )
    seeds: list[int] = Field([1], min_length=1)
    model: SourceConfig = Field(
        description="what to start from, as in model.init_from=runs/demo-general"
    )
    task: TaskConfig
    train: FinetuneTrainConfig = defaults_of(FinetuneTrainConfig)
    distillation: DistillationConfig | None = Field(
        None, description="null learns from the labels alone"
    )
    zero: ZeroConfig = defaults_of(ZeroConfig)
    checkpoint: CheckpointConfig = CheckpointConfig.model_validate(
        {"interval_steps": 1, "keep_last": 1}
    )
    launch: LaunchConfig = defaults_of(LaunchConfig)
    score_test: bool = Field(
        True, description="false leaves the test split alone; the same command scores it later"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds names a seed twice")
        if not all(0 <= seed < 1 << 63 for seed in self.seeds):
            raise ValueError("seeds must be at least 0 and below 2^63")
        if self.checkpoint.mirror is not None:
            raise ValueError("checkpoint.mirror is for pretraining: remove it")
        return self

    @property
    def seed(self) -> int:
        """The seed of a run of one seed."""
        (seed,) = self.seeds
        return seed

    def for_seed(self, seed: int) -> "FinetuneConfig":
        """The run of one seed: its folder is launch.runs_dir/NAME/seed-SEED."""
        launch = self.launch.model_copy(update={"runs_dir": self.launch.runs_dir / self.name})
        return self.model_copy(update={"name": f"seed-{seed}", "seeds": [seed], "launch": launch})
