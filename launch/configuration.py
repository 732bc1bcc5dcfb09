"""The root configuration of a pretraining run: a section a component, and what holds across them.

Each section is declared by the package that it configures; this file is the table of contents.
A run is a YAML file with dotted overrides: `sparsebert pretrain configs/demo.yaml zero.stage=3`.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from bert.configuration import (
    DataConfig,
    DistillationConfig,
    EvaluationConfig,
    ModelConfig,
    TrainConfig,
)
from distributed.config import CheckpointConfig, Config, ZeroConfig
from launch import config_loading
from launch.slurm.config import SlurmConfig
from launch.yaml_values import dump
from sparsity.schedule import SparsityConfig

log = logging.getLogger(__name__)

AnyModel = TypeVar("AnyModel", bound=BaseModel)

# A name becomes a folder and a TensorBoard tag.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_NAME_RULE = "use at most 100 letters, digits, '.', '_' and '-', not starting with '.'"


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
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} cannot be a folder: {_NAME_RULE}")
    return name


class PretrainConfig(Config):
    """A pretraining run, complete."""

    name: str = Field(
        coerce_numbers_to_str=True, description="of the run and of its folder in launch.runs_dir"
    )
    seed: int = Field(1, ge=0, lt=1 << 63)
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    evaluation: EvaluationConfig = defaults_of(EvaluationConfig)
    zero: ZeroConfig = defaults_of(ZeroConfig)
    sparsity: SparsityConfig | None = Field(None, description="null trains a dense model")
    distillation: DistillationConfig | None = Field(
        None, description="null learns from the text alone"
    )
    checkpoint: CheckpointConfig = defaults_of(CheckpointConfig)
    launch: LaunchConfig = defaults_of(LaunchConfig)
    slurm: SlurmConfig = defaults_of(SlurmConfig)

    _check_name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in (
            self._sparsity_problem(),
            self._batch_problem(),
            self._dropout_problem(),
            *(
                f"evaluation.sets has the name {name!r}: {_NAME_RULE}"
                for name in self.evaluation.sets
                if not _NAME.fullmatch(name)
            ),
        ):
            if problem:
                raise ValueError(problem)
        return self

    def _sparsity_problem(self) -> str | None:
        if self.sparsity is None:
            return None
        last = self.sparsity.last_update_step
        if last is None:
            if self.model.init_from is None:
                return (
                    "sparsity.schedule frozen keeps the masks of another model: set "
                    "model.init_from to its run, checkpoint or Hugging Face folder"
                )
            return None
        if last >= self.train.total_steps:
            one_shot = self.sparsity.schedule == "one_shot"
            field = "prune_start_step" if one_shot else "prune_end_step"
            return (
                f"sparsity.{field} ({last}) must be below train.total_steps "
                f"({self.train.total_steps}), as steps count from 0: lower it or train longer"
            )
        return None

    def _batch_problem(self) -> str | None:
        if self.data.max_seq_len > self.model.max_position_embeddings:
            return (
                f"data.max_seq_len ({self.data.max_seq_len}) is above "
                f"model.max_position_embeddings ({self.model.max_position_embeddings}): lower the "
                "first or raise the second"
            )
        if self.train.global_batch_rows < self.launch.most_workers:
            return (
                f"train.global_batch_rows ({self.train.global_batch_rows}) is below "
                f"launch.num_workers ({self.launch.most_workers}): each worker needs a row of "
                "every batch, so raise the first or lower the second"
            )
        return None

    def _dropout_problem(self) -> str | None:
        # Whether there will be a GPU is not known here, and the answer must not depend on it.
        if (
            self.train.attention_dropout > 0
            and self.train.precision == "bf16"
            and self.launch.use_gpu is not False
        ):
            return (
                f"train.attention_dropout ({self.train.attention_dropout}) must be 0 because "
                "attention over packed rows has no dropout on a GPU in bf16 (or set "
                "train.precision to fp32, or launch.use_gpu to false)"
            )
        return None


@overload
def load_config(path: Path | str, overrides: Sequence[str] = ()) -> PretrainConfig: ...


@overload
def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, root: type[AnyModel]
) -> AnyModel: ...


def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, root: type[BaseModel] = PretrainConfig
) -> BaseModel:
    """The configuration in the YAML file `path` with `overrides` (`a.b=value`) over it.

    Raises:
        BadInput: one sentence on the first problem, with its field and its file.
    """
    for repeated in config_loading.find_repeated(overrides):
        log.warning("%s", repeated)
    return config_loading.load(Path(path), overrides, root)


def resolve_paths(config: AnyModel) -> AnyModel:
    """The same configuration with absolute paths: workers run in other folders."""
    fields = {name: _resolve(getattr(config, name)) for name in type(config).model_fields}
    return config.model_copy(update=fields)


def _resolve(value: Any) -> Any:
    if isinstance(value, Path):
        return Path(os.path.abspath(value.expanduser()))
    if isinstance(value, BaseModel):
        return resolve_paths(value)
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve(item) for item in value)
    return value


def dump_yaml(config: BaseModel) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    return dump(config.model_dump(mode="json"))
