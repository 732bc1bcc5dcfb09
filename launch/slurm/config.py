"""What a run asks SLURM for: the section `slurm` of a configuration."""

import math
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from distributed.config import Config
from distributed.errors import BadInput


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


def find_cpus_per_node(slurm: SlurmConfig, *, num_workers: int, cpus_per_worker: float) -> int:
    """CPUs to ask for on each node.

    Raises:
        BadInput: there are more nodes than workers.
    """
    if slurm.nodes > num_workers:
        raise BadInput(
            f"slurm.nodes is {slurm.nodes} and launch.num_workers is {num_workers}: each node "
            "needs a worker, so lower the first or raise the second"
        )
    return slurm.cpus_per_node or math.ceil(math.ceil(num_workers / slurm.nodes) * cpus_per_worker)
