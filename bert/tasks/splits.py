"""A task's files -> its three splits and its labels, checked against each other.

Labels are those of task.labels or of the training split; an unknown one in any split is refused
with its place. A dev split is read, or drawn from the training split by a hash of its texts, so
that it does not depend on seeds or on the order of the file; what comes from one sentence, text or
context stays together.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bert.tasks.configuration import SplitConfig, TaskConfig
from bert.tasks.examples import Example, QuestionExample, Split, TextExample, TokenExample
from bert.tasks.reading_questions import read_squad_split
from bert.tasks.reading_relations import read_chemprot_split, read_ddi_split, read_marked_split
from bert.tasks.reading_tags import read_tag_split
from bert.tasks.reading_text import (
    read_bioasq_split,
    read_folder_split,
    read_pubmedqa_split,
    read_record_split,
)
from distributed.errors import BadInput

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

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        there = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: split for name, split in there.items() if split is not None}


def load_task(task: TaskConfig) -> TaskData:
    """Read and check every split.

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
    if task.max_train_examples is not None and task.max_train_examples < len(train.examples):
        _hold_out(train, len(train.examples) - task.max_train_examples, reason=_LEFT)
    test = read(task, task.test) if task.test is not None else None
    for name, split in (("train", train), ("dev", dev), ("test", test)):
        if split is not None and not split.examples:
            raise BadInput(
                f"task.{name} has no example: look at its files and at task.dev_fraction"
            )
    labels = _collect_labels(task, train)
    _check_metrics(task, labels)
    for split in (train, dev, test):
        if split is not None and labels:
            _check_labels(split.examples, labels)
    fingerprint = _fingerprint([s.examples if s else () for s in (train, dev, test)], labels)
    return TaskData(train, dev, test, labels, fingerprint)


def labels_of(example: Example) -> tuple[str, ...]:
    """Every class that the example names."""
    if isinstance(example, TokenExample):
        return example.tags
    if isinstance(example, TextExample) and not isinstance(example.label, float):
        return (example.label,) if isinstance(example.label, str) else example.label
    return ()


def _collect_labels(task: TaskConfig, train: Split) -> tuple[str, ...]:
    if task.kind in ("regression", "question_answering"):
        return ()
    there = {label for example in train.examples for label in labels_of(example)}
    if task.labels is not None:
        unseen = [label for label in task.labels if task.label_map.get(label, label) not in there]
        for label in unseen:
            train.reports[f"label {label} of task.labels without a training example"] += 1
        return tuple(dict.fromkeys(task.label_map.get(x, x) for x in task.labels))
    if task.kind == "tokens":
        # An entity of one word in training may be longer in the test.
        there |= {f"I{tag[1:]}" for tag in there if tag.startswith("B")}
        return ("O", *sorted(there - {"O"}))
    if len(there) < 2 and task.kind != "multi_label":
        raise BadInput(f"task.train has the one label {', '.join(there)}: it takes two to learn")
    return tuple(sorted(there))


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


def _check_labels(examples: Iterable[Example], labels: Sequence[str]) -> None:
    known = set(labels)
    for example in examples:
        for label in labels_of(example):
            if label not in known:
                shown = ", ".join(labels[:12])
                raise BadInput(
                    f"{example.place} has the label {label!r}, which the training split (or "
                    f"task.labels) does not have: those are {shown}"
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
