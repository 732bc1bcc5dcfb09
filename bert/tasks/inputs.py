"""A fine-tuning run's data: every split read, checked and encoded for its model's vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

from bert.tasks.classes import describe_classes
from bert.tasks.encoding import EncodedSplit, encode_split
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.splits import TaskData, load_task
from bert.vocabulary import Vocabulary


@dataclass(frozen=True)
class Inputs:
    """The task as the model reads it."""

    data: TaskData
    vocabulary: Vocabulary
    splits: dict[str, EncodedSplit]

    def reports(self) -> dict[str, dict[str, int]]:
        """What was skipped, cut or mended, by split and reason."""
        return {
            name: dict(self.data.splits[name].reports + split.reports)
            for name, split in self.splits.items()
        }

    def notes(self, config: FinetuneConfig) -> list[str]:
        """What to know before training: the classes with their counts, and what looks wrong."""
        lines = describe_classes(self.data.classes, self.data.splits, config.task)
        return [*lines, *(f"warning: {warning}" for warning in self.data.warnings)]


def read_inputs(
    config: FinetuneConfig, vocabulary: Vocabulary, *, begun_labels: Sequence[str] | None = None
) -> Inputs:
    """Read and encode every split; `begun_labels` as in `load_task`."""
    data = load_task(config.task, begun_labels=begun_labels)
    splits = {
        name: encode_split(
            split.examples,
            task=config.task,
            labels=data.labels,
            vocabulary=vocabulary,
            training=name == "train",
        )
        for name, split in data.splits.items()
    }
    return Inputs(data, vocabulary, splits)
