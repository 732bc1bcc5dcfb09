"""The sections of a configuration that every run has: how it is trained, where, and under SLURM.

`RunConfig` is the root that pretraining and fine-tuning add their sections to. Imports no torch, as
no configuration does.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field, PositiveInt, field_validator, model_validator

from distributed.config import CheckpointConfig, Config, OptimizerConfig, ZeroConfig
from training.yaml_values import dump

NonFinitePolicy = Literal["skip", "stop", "rollback"]  # see guards.py
AnyModel = TypeVar("AnyModel", bound=BaseModel)

# A name becomes a folder and a TensorBoard tag.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
NAME_RULE = "use at most 100 letters, digits, '.', '_' and '-', not starting with '.'"


class LaunchConfig(Config):
    """Where the run runs: nothing here changes what is computed."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1,
        description="processes that train together; [fewest, most] starts as many as the cluster "
        "holds, goes on with fewer after a loss and takes new ones in",
    )
    cpus_per_worker: float = Field(1, gt=0, description="0.5 lets two workers share a core")
    use_gpu: Literal["auto"] | bool = Field(
        "auto", description="auto: one GPU for each worker where the cluster has any"
    )
    placement: Literal["pack", "spread"] = Field(
        "pack", description="fill one node after the other, or use as many as there are"
    )
    max_failures: int = Field(3, ge=0, description="restarts after a worker is lost")
    hang_seconds: float = Field(
        1800, gt=0, description="a worker that finishes no step for so long is replaced"
    )
    address: str | None = Field(
        None,
        description="address of a Ray cluster; null takes RAY_ADDRESS from the environment, and "
        "without that starts a local cluster",
    )
    runs_dir: Path = Field(
        Path("runs"), description="run folders go here; all machines must reach it"
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _check_num_workers(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            is_range = len(value) == 2 and all(type(n) is int and n > 0 for n in value)
            if not is_range or value[0] > value[1]:
                raise ValueError(f"a range of workers is [fewest, most], not {list(value)}")
            return value[0] if value[0] == value[1] else tuple(value)
        return value

    @property
    def fewest_workers(self) -> int:
        """What the run goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """What the run starts where there is room."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.fewest_workers < self.most_workers


def defaults_of(section: type[AnyModel]) -> AnyModel:
    """A section that the file leaves out."""
    return section.model_validate({})


def check_name(name: str) -> str:
    """Refuse a run's name that cannot be a folder."""
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name!r} cannot be a folder: {NAME_RULE}")
    return name


def dump_yaml(config: BaseModel) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    return dump(config.model_dump(mode="json"))


def _one_line(value: str) -> str:
    # It becomes a line of the job script: an end of line in it would become a command.
    if not re.fullmatch(r"[^\s'\"`$\\;&|<>]+", value):
        raise ValueError(f"{value!r} is not one word that sbatch would take: leave out spaces")
    return value


Word = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_one_line)]


class SlurmConfig(Config):
    """Read by `sparsebert submit --slurm` only: nothing here changes what is computed."""

    nodes: int = Field(1, ge=1)
    partition: Word | None = Field(None, description="null takes the cluster's default")
    time: Word | None = Field(
        None, description="time limit of one start, such as 24:00:00; null takes the partition's"
    )
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = Field(None, description="features that the nodes must have")
    cpus_per_node: int | None = Field(
        None, ge=1, description="null asks for what the workers of a node use"
    )
    gpus_per_node: int | None = Field(
        None, ge=0, description="null asks for one a worker if launch.use_gpu is true, else none"
    )
    memory_per_node: Word | None = Field(None, description="such as 64G; null takes the default")
    exclusive: bool = Field(False, description="whether to share no node with other jobs")
    warning_seconds: int = Field(
        300, ge=10, lt=65536, description="how long before the time limit the run saves and stops"
    )
    setup: list[str] = Field(
        default_factory=list,
        description="shell lines before the start, such as `module load cuda`",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        limit = None if self.time is None else _seconds(self.time)
        if limit is not None and limit <= self.warning_seconds:
            raise ValueError(
                f"slurm.time {self.time} is no longer than slurm.warning_seconds "
                f"({self.warning_seconds}), so no start would train: raise the first or lower the "
                "second"
            )
        return self


def _seconds(time: str) -> float | None:
    """A time limit in seconds, as sbatch(1) reads it; None for one that is no number."""
    days, dash, clock = time.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        hours, minutes, seconds = (
            [*parts, 0, 0][:3] if dash else [0, *parts, 0][:3] if len(parts) < 3 else parts
        )
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except ValueError:  # such as UNLIMITED
        return None


class UpdateConfig(OptimizerConfig):
    """How one update is computed, and what is told of it."""

    global_batch_rows: int = Field(..., ge=1, description="rows of one step, over all ranks")
    learning_rate: float = Field(..., gt=0)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    log_interval_steps: int = Field(10, ge=1)
    on_non_finite: NonFinitePolicy = Field(
        "skip", description="what follows a gradient that is not finite"
    )
    max_non_finite_steps: int = Field(
        10, ge=0, description="in a row, or returns to a checkpoint, before the run ends"
    )


class TrainConfig(UpdateConfig):
    """How the weights are trained, step by step."""

    total_steps: int = Field(..., ge=1)
    warmup_steps: int = Field(0, ge=0)
    lr_rewind_interval_steps: int | None = Field(
        None,
        ge=1,
        description="begin the decay anew every so many steps, in step with the masks' updates as "
        "Prune Once for All and oBERT do",
    )
    lr_rewind_end_step: int | None = Field(
        None, ge=1, description="the last rewind; from there the decay goes to the end"
    )
    lr_floor: float = Field(
        0.0, ge=0, lt=1, description="share of learning_rate that a decay ends at"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"train.warmup_steps ({self.warmup_steps}) is above "
                f"train.total_steps ({self.total_steps})"
            )
        if (self.lr_rewind_interval_steps is None) != (self.lr_rewind_end_step is None):
            raise ValueError(
                "set both of train.lr_rewind_interval_steps and train.lr_rewind_end_step, or none"
            )
        if self.lr_rewind_end_step is not None and not (
            self.warmup_steps < self.lr_rewind_end_step < self.total_steps
        ):
            raise ValueError(
                f"train.lr_rewind_end_step ({self.lr_rewind_end_step}) must lie between "
                f"train.warmup_steps ({self.warmup_steps}) and train.total_steps "
                f"({self.total_steps})"
            )
        return self


class RunConfig(Config):
    """What the root configuration of every run has, and what must hold across its sections.

    The roots declare the fields, in the order in which people write them.
    """

    if TYPE_CHECKING:
        name: str
        train: UpdateConfig
        zero: ZeroConfig
        checkpoint: CheckpointConfig
        launch: LaunchConfig

        @property
        def seed(self) -> int: ...

    @field_validator("name", check_fields=False)
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)

    @model_validator(mode="after")
    def _check_rows_and_dropout(self) -> Self:
        if self.train.global_batch_rows < self.launch.most_workers:
            raise ValueError(
                f"train.global_batch_rows ({self.train.global_batch_rows}) is below "
                f"launch.num_workers ({self.launch.most_workers}): each worker needs a row of "
                "every batch, so raise the first or lower the second"
            )
        # Whether there will be a GPU is not known here, and the answer must not depend on it.
        if (
            self.train.attention_dropout > 0
            and self.train.precision == "bf16"
            and self.launch.use_gpu is not False
        ):
            raise ValueError(
                f"train.attention_dropout ({self.train.attention_dropout}) must be 0 because "
                "attention over packed rows has no dropout on a GPU in bf16 (or set "
                "train.precision to fp32, or launch.use_gpu to false)"
            )
        return self
