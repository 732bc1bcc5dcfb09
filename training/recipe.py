"""What a run of any model is to those who start it and to those who train it.

    Recipe       the launcher's side: what can be wrong, what a run begins with, when it is finished
    RunPlan      what the launcher found, for the workers
    Trainable    the worker's side: module, first weights, batches, validation

bert/pretrain.py and bert/tasks/finetune.py are the two recipes; launch/recipes.py has the table.
Imports no torch: a launcher checks a run before anything slow is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from training.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from sparsity.schedule import SparsityConfig
    from training.batches import Batches, Validation
    from training.process import WorkerProcess
    from training.start import Start
    from training.state import TrainState, Weight


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that may start, in fields that JSON can carry to the workers."""

    identity: dict[str, Any]
    init_from: str | None  # the checkpoint or Hugging Face folder that model.init_from means
    teacher: str | None  # the same of distillation.teacher
    finished_steps: int  # of the newest good checkpoint; 0 for a new run
    total_steps: int
    is_complete: bool  # nothing is left to do
    notes: list[str] = field(default_factory=list)  # what to tell before training


Plan = TypeVar("Plan", bound=RunPlan)


class Recipe(Protocol[Plan]):
    """One kind of run, with the configuration of one run."""

    name: ClassVar[str]  # in a packed job
    config_type: ClassVar[type[RunConfig]]
    plan_type: ClassVar[type[RunPlan]]
    training_module: ClassVar[str]  # what `build` imports, which takes seconds
    config: RunConfig  # with absolute paths

    def check(self) -> Plan:
        """Check everything that can be wrong; writes nothing.

        Raises:
            BadInput: one sentence on what to change.
        """

    def begin(self, plan: Plan) -> None:
        """Write what the run begins with, beside what every run does (session.py)."""
        return None

    def is_finished(self, plan: Plan, finished_steps: int) -> bool:
        """Whether nothing is left to do."""

    def input_files(self) -> dict[str, list[str]]:
        """By field, the files without which a worker cannot begin."""

    def build(self, plan: Plan, process: "WorkerProcess") -> "Trainable":
        """Collective: the run as this process trains it."""


class Trainable(Protocol):
    """A run in one of its processes: built once, trained in one attempt after another.

    `digests` names the inputs of the run by checksum. `described` goes into every checkpoint's
    manifest. `matrix_titles` are the heat map's titles of the matrices of a layer.
    """

    config: RunConfig  # with the teacher of this run, wherever its path may lead later
    train_config: TrainConfig
    sparsity: "SparsityConfig | None"
    batches: "Batches"
    save_interval_steps: int
    flops_per_token: float
    digests: Mapping[str, str | None]
    described: Mapping[str, Any]
    matrix_titles: Mapping[str, str]

    def build_module(self) -> "nn.Module":
        """The model with new weights."""

    def weights(self, module: "nn.Module") -> "list[Weight]":
        """Every parameter of `module` once."""

    def first_start(self, module: "nn.Module") -> "Start":
        """What a run without a checkpoint begins with."""

    def validation(self, state: "TrainState", beat: Callable[[], None]) -> "Validation":
        """Collective: for an attempt from `state`; `beat` tells the watchdog of progress."""

    def before_save(self, state: "TrainState") -> None:
        """A checkpoint of `state` is about to be written."""
        return None

    def after_commit(self, step: int) -> None:
        """On rank 0, in the writer's thread: the checkpoint of `step` is visible."""
        return None

    def finish(self, state: "TrainState", beat: Callable[[], None]) -> None:
        """Collective: what follows training that ended at `state`, which may be a stop."""
        return None
