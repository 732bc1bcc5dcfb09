"""Validation while fine-tuning, which decides which checkpoint is the model.

The best step is the earliest with the best value of the task's first metric on the dev split.
"""

from collections.abc import Callable, Sequence

from bert.tasks.batches import TaskBatches
from bert.tasks.config import TaskConfig
from bert.tasks.encoding import EncodedSplit
from bert.tasks.predicting import predict
from distributed.zero import Engine


def find_best(history: Sequence[tuple[int, float]]) -> int | None:
    """The earliest step with the best score among (step, score); None without any."""
    return min(history, key=lambda entry: (-entry[1], entry[0]))[0] if history else None


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
        beat: Callable[[], object] = lambda: None,
    ) -> None:
        """Validate every `interval_steps`; `history` is (step, score) of the run so far.

        `beat` is called after each forward.
        """
        self._beat = beat
        self._interval_steps = interval_steps
        self._patience = patience
        self._split, self._batches, self._task, self._labels = split, batches, task, labels
        self._history = list(history)

    @property
    def best_step(self) -> int | None:
        """The earliest step with the best score; None before the first evaluation."""
        return find_best(self._history)

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
            engine,
            self._split,
            self._batches,
            task=self._task,
            labels=self._labels,
            beat=self._beat,
        )
        self._history.append((finished_steps, predictions.figures[self._task.main_metric]))
        figures = {f"dev/{name}": value for name, value in predictions.figures.items()}
        return {"dev/loss": predictions.loss, **figures}
