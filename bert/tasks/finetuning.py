"""Fine-tuning: how long and how fast, and validation that decides which checkpoint is the model.

The best step is the earliest with the best value of the task's first metric on the dev split.
"""

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from bert import numbers
from bert.pretraining import TrainConfig
from bert.tasks.batches import TaskBatches
from bert.tasks.configuration import TaskConfig
from bert.tasks.encoding import EncodedSplit
from bert.tasks.predicting import predict
from distributed.config import Config
from distributed.zero import Engine


class FinetuneTrainConfig(Config):
    """How a model is fine-tuned; the defaults are BERT's and BLURB's (arXiv 2007.15779)."""

    epochs: float = Field(3, gt=0)
    global_batch_rows: int = Field(32, ge=1, description="rows of one step, over all ranks")
    micro_batch_rows: int = Field(32, ge=1, description="rows of one forward on one rank")
    learning_rate: float = Field(3e-5, gt=0)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 does not clip")
    hidden_dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    log_interval_steps: int = Field(50, ge=1)
    on_non_finite: numbers.Policy = Field(
        "skip", description="what follows a gradient that is not finite"
    )
    max_non_finite_steps: int = Field(
        10, ge=0, description="in a row, or returns to a checkpoint, before the run ends"
    )
    evaluations_per_epoch: int = Field(1, ge=1, description="on dev; each saves a checkpoint")
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations on dev without a better one"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas {self.betas} must lie in [0, 1)")
        return self

    def plan(self, num_rows: int) -> TrainConfig:
        """The same in steps, for a training split of `num_rows` rows."""
        total_steps = max(1, round(self.epochs * num_rows / self.global_batch_rows))
        fields = self.model_dump(
            exclude={"epochs", "warmup_fraction", "evaluations_per_epoch", "patience"}
        )
        return TrainConfig(
            **fields,
            total_steps=total_steps,
            warmup_steps=round(self.warmup_fraction * total_steps),
        )

    def evaluation_interval_steps(self, num_rows: int) -> int:
        """Steps between two evaluations."""
        per_epoch = num_rows / self.global_batch_rows
        return max(1, math.ceil(per_epoch / self.evaluations_per_epoch))


class TaskValidation:
    """Scores the dev split and remembers which step was best."""

    def __init__(
        self,
        *,
        interval_steps: int,
        patience: int | None,
        split: EncodedSplit,
        batches: TaskBatches,
        task: TaskConfig,
        labels: Sequence[str],
        history: Sequence[tuple[int, float]],
    ) -> None:
        """Validate every `interval_steps`; `history` is (step, score) of the run so far."""
        self._interval_steps = interval_steps
        self._patience = patience
        self._split, self._batches, self._task, self._labels = split, batches, task, labels
        self._history = list(history)

    @property
    def best_step(self) -> int | None:
        """The earliest step with the best score; None before the first evaluation."""
        if not self._history:
            return None
        return min(self._history, key=lambda entry: (-entry[1], entry[0]))[0]

    @property
    def is_satisfied(self) -> bool:
        """Whether `patience` evaluations in a row were no better than the best before them."""
        if self._patience is None or self.best_step is None:
            return False
        return sum(step > self.best_step for step, _ in self._history) >= self._patience

    def is_due(self, finished_steps: int) -> bool:
        """Whether to validate after that many steps."""
        return finished_steps % self._interval_steps == 0

    def evaluate(self, engine: Engine, finished_steps: int) -> dict[str, float]:
        """Collective: loss and metrics of the dev split, alike on all ranks."""
        predictions = predict(
            engine, self._split, self._batches, task=self._task, labels=self._labels
        )
        self._history.append((finished_steps, predictions.figures[self._task.main_metric]))
        figures = {f"dev/{name}": value for name, value in predictions.figures.items()}
        return {"dev/loss": predictions.loss, **figures}
