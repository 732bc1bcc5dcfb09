"""Fine-tuning as a recipe: one task, one seed, masks frozen.

What checks and trains is imported when it is used: it needs torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bert.corpora.hub import HUB_PREFIX
from bert.origins import resolve_teacher
from bert.tasks.finetune_config import FinetuneConfig
from training.recipe import Recipe, RunPlan

if TYPE_CHECKING:
    from bert.tasks.finetune_training import TaskTraining
    from training.process import WorkerProcess


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(RunPlan):
    """A fine-tuning run that may start."""

    model: dict[str, Any]  # a ModelConfig
    tokenizer: dict[str, Any]  # what Vocabulary.record() says
    sparsity: dict[str, Any] | None  # frozen, or None for a dense model
    labels: list[str]  # in the order of the model's outputs


class Finetuning(Recipe[FinetunePlan]):
    """The recipe of one seed's run."""

    config: FinetuneConfig
    name = "finetune"
    config_type = FinetuneConfig
    plan_type = FinetunePlan
    training_module = "bert.tasks.finetune_training"

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config

    def check(self) -> FinetunePlan:
        """See `check_finetuning`."""
        from bert.tasks.checks import check_finetuning

        return check_finetuning(self.config)

    def begin(self, plan: FinetunePlan) -> None:
        """Write the vocabulary too: the run needs its source no more."""
        from bert.tasks.checks import write_vocabulary

        write_vocabulary(self.config, plan)

    def is_finished(self, plan: FinetunePlan, finished_steps: int) -> bool:
        """Whether the run has its scores; it may end before its last step."""
        from bert.tasks.history import is_scored

        return is_scored(self.config)

    def input_files(self) -> dict[str, list[str]]:
        """The files of the task's splits."""
        task = self.config.task
        splits = {"train": task.train, "dev": task.dev, "test": task.test}
        return {
            f"task.{name}": [path for path in split.paths if not path.startswith(HUB_PREFIX)]
            for name, split in splits.items()
            if split is not None
        }

    def build(self, plan: FinetunePlan, process: "WorkerProcess") -> "TaskTraining":
        """Collective: the task's examples, batches and teacher of this process."""
        from bert.tasks.finetune_training import TaskTraining

        distillation = resolve_teacher(self.config.distillation, plan.teacher)
        config = self.config.model_copy(update={"distillation": distillation})
        return TaskTraining(config, plan, process)
