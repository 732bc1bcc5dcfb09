"""A task's files -> its three splits and its labels, checked against each other.

Labels are those of task.labels or of the training split (see classes.py); an unknown one in any
split is refused with its place. A dev split is read, or drawn from the training split by a hash of
its texts, so that it does not depend on seeds or on the order of the file; what comes from one
sentence, text or context stays together.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from bert.tasks.classes import (
    ClassCounts,
    check_class_names,
    check_labels,
    collect_labels,
    count_classes,
    find_warnings,
    settle_numbers,
)
from bert.tasks.config import SplitConfig, TaskConfig
from bert.tasks.formats.articles import read_bioasq_split, read_pubmedqa_split
from bert.tasks.formats.examples import Example, QuestionExample, Split, TextExample
from bert.tasks.formats.questions import read_squad_split
from bert.tasks.formats.relations import read_chemprot_split, read_ddi_split, read_marked_split
from bert.tasks.formats.tags import read_tag_split
from bert.tasks.formats.text import read_folder_split, read_record_split
from distributed.errors import BadInput

# Raised when the same files may give other examples than before; a run records it when it begins.
# Runs that did not record it are older.
READING_RULES = 2
_READERS: dict[str, Callable[[TaskConfig, SplitConfig], Split]] = {
    "records": read_record_split,
    "folders": read_folder_split,
    "tags": read_tag_split,
    "squad": read_squad_split,
    "chemprot": read_chemprot_split,
    "ddi": read_ddi_split,
    "marked": read_marked_split,
    "pubmedqa": read_pubmedqa_split,
    "bioasq": read_bioasq_split,
}
_HELD_OUT = "examples of the training split held out as dev"
_LEFT = "training examples left out by task.max_train_examples"


@dataclass(frozen=True)
class TaskData:
    """All of a task. `labels` in the order of the model's outputs; empty without classes."""

    train: Split
    dev: Split
    test: Split | None
    labels: tuple[str, ...]
    fingerprint: str = field(default="")  # of all examples and labels
    classes: ClassCounts = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # about the classes
    newer_rules: tuple[str, ...] = ()  # newer than the first, and without them it would be another

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        there = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: split for name, split in there.items() if split is not None}

    def without_examples(self) -> "TaskData":
        """The same as far as it is small."""
        return replace(self, train=Split([]), dev=Split([]), test=None)


def load_task(task: TaskConfig, *, begun_labels: Sequence[str] | None = None) -> TaskData:
    """Read and check every split.

    Args:
        task: what to read.
        begun_labels: the labels of a run that has begun, in the order of its model's outputs; they
            are the task's as long as the files have these.

    Raises:
        BadInput: with the file and the line.
    """
    read = _READERS[task.format]
    train = read(task, task.train)
    if task.dev is not None:
        dev = read(task, task.dev)
    else:
        assert task.dev_fraction is not None
        dev = _hold_out(train, round(task.dev_fraction * len(train.examples)), whole_groups=True)
        dev.label_types, dev.class_names = train.label_types, train.class_names
    if task.max_train_examples is not None and task.max_train_examples < len(train.examples):
        _hold_out(train, len(train.examples) - task.max_train_examples, reason=_LEFT)
    test = read(task, task.test) if task.test is not None else None
    data = TaskData(train, dev, test, ())
    for name, split in data.splits.items():
        _check_examples(name, split)
    check_class_names(data.splits.values())
    settle_numbers(data.splits, task, begun_labels)
    labels = collect_labels(task, train, begun_labels)
    _check_metrics(task, labels)
    if labels:
        for split in data.splits.values():
            check_labels(split.examples, labels)
    counts = count_classes(data.splits, labels)
    return replace(
        data,
        labels=labels,
        fingerprint=_fingerprint([s.examples if s else () for s in (train, dev, test)], labels),
        classes=counts,
        warnings=find_warnings(counts, labels, task),
        newer_rules=tuple(sorted({rule for s in data.splits.values() for rule in s.newer_rules})),
    )


def _check_examples(name: str, split: Split) -> None:
    """Refuse a split without examples, or whose scores are all -1, as unlabelled ones are."""
    if not split.examples:
        found = ", ".join(f"{count:,} {reason}" for reason, count in split.reports.items())
        raise BadInput(
            f"task.{name} has no example{f' ({found})' if found else ''}: look at its files and at "
            "task.dev_fraction"
        )
    scores = {e.label for e in split.examples if isinstance(e, TextExample)}
    if scores == {-1.0} and len(split.examples) > 1:
        raise BadInput(
            f"task.{name} has the score -1 in every record, which means unlabelled: give a split "
            "with scores"
        )


def _check_metrics(task: TaskConfig, labels: Sequence[str]) -> None:
    for label in task.negative_labels:
        if label not in labels:
            raise BadInput(
                f"task.negative_labels has {label!r}, which is no label of the task: those are "
                + ", ".join(labels[:12])
            )
    if "f1" in task.metrics and len(labels) != 2:
        raise BadInput(
            f"task.metrics has f1, which is of two labels, and the task has {len(labels)}: choose "
            "macro_f1 or micro_f1"
        )


def _hold_out(
    train: Split, count: int, *, reason: str = _HELD_OUT, whole_groups: bool = False
) -> Split:
    """Take `count` examples out of `train`: those with the smallest hashes, in their order.

    With `whole_groups` as many more as are of one text with the last of them, but not all.
    """
    texts = [_group(example) if whole_groups else _text(example) for example in train.examples]
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    order = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    if whole_groups and 0 < count < len(order):
        last = keys[order[count - 1]]
        while count < len(order) and keys[order[count]] == last:
            count += 1
    chosen = set(order[:count])
    out = Split([e for i, e in enumerate(train.examples) if i in chosen], Counter())
    train.examples = [e for i, e in enumerate(train.examples) if i not in chosen]
    train.reports[reason] += len(out.examples)
    return out


def _group(example: Example) -> str:
    """What examples share that would tell of one another: by default the example's own text."""
    return (isinstance(example, TextExample) and example.group) or _text(example)


def _text(example: Example) -> str:
    if isinstance(example, TextExample):
        return f"{example.text}\n{example.text_pair}"
    if isinstance(example, QuestionExample):
        return example.context
    return " ".join(example.words)


def _fingerprint(splits: Iterable[Sequence[Example]], labels: Sequence[str]) -> str:
    total = hashlib.sha256(repr(tuple(labels)).encode())
    for examples in splits:
        for example in examples:
            content = {k: v for k, v in vars(example).items() if k not in ("place", "group")}
            total.update(repr(sorted(content.items())).encode())
        total.update(b"\0")
    return total.hexdigest()
