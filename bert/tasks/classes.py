"""A task's classes: their names, how many examples of each split have them, what looks wrong."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bert.tasks.config import TaskConfig
from bert.tasks.formats.examples import (
    BY_VALUE,
    Example,
    NumberLabel,
    Split,
    TextExample,
    TokenExample,
)
from bert.tasks.formats.labels import NameTable, label_map, label_names
from distributed.errors import BadInput

_SHOWN = 12

ClassCounts = dict[str, dict[str, int]]  # split -> class -> examples (words, of tags)


def labels_of(example: Example) -> tuple[str, ...]:
    """Every class that the example names."""
    if isinstance(example, TokenExample):
        return example.tags
    if isinstance(example, TextExample) and not isinstance(example.label, float):
        return (example.label,) if isinstance(example.label, str) else example.label
    return ()


def settle_numbers(
    splits: Mapping[str, Split], task: TaskConfig, begun_labels: Sequence[str] | None
) -> None:
    """Give every label that a file writes as a number one name for its value, in all splits.

    The name is the one that the begun run or task.labels has, or a string label of the training
    split, or the shortest spelling of the number there: "1" for 1 and 1.0, "1.0" for 1.0 alone.

    Raises:
        BadInput: labels are numbers in one place and true or false in another.
    """
    first: dict[str, str] = {}
    for split in splits.values():
        for kind, place in split.label_types.items():
            first.setdefault(kind, place)
    if "number" not in first:
        return
    if "boolean" in first:
        raise BadInput(
            f"{first['boolean']} has true or false as its label and {first['number']} a number: "
            "write all labels in one way"
        )
    numbers: dict[str, set[str]] = {}
    for name, split in splits.items():
        labels = {label for example in split.examples for label in labels_of(example)}
        numbers[name] = {label for label in labels if isinstance(label, NumberLabel)}
        if name == "train":
            strings = labels - numbers[name]
    names = NameTable(
        [
            *(begun_labels or ()),
            *(label_names(task) or ()),
            *sorted(strings, key=_by_length),
            *(label for found in numbers.values() for label in sorted(found, key=_by_length)),
        ]
    )
    for split in splits.values():
        renamed = [_rename(example, names) for example in split.examples]
        if any(labels_of(a) != labels_of(b) for a, b in zip(renamed, split.examples, strict=True)):
            split.newer_rules.add(BY_VALUE)
        split.examples = renamed


def collect_labels(
    task: TaskConfig, train: Split, begun_labels: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes in the order of the model's outputs; none for numbers and answers.

    Args:
        task: may name them.
        train: the training split, which has them otherwise.
        begun_labels: those of the checkpoint of a run that has begun, if they are these.
    """
    if task.kind in ("regression", "question_answering"):
        return ()
    there = {label for example in train.examples for label in labels_of(example)}
    labels = _order_labels(task, train, there)
    if begun_labels is not None and set(begun_labels) == set(labels):
        return tuple(begun_labels)
    return labels


def check_labels(examples: Iterable[Example], labels: Sequence[str]) -> None:
    """Refuse an example whose class is not one of `labels`.

    Raises:
        BadInput: with its place.
    """
    known = set(labels)
    for example in examples:
        for label in labels_of(example):
            if label not in known:
                shown = ", ".join(labels[:_SHOWN])
                raise BadInput(
                    f"{example.place} has the label {label!r}, which the training split (or "
                    f"task.labels) does not have: those are {shown}"
                )


def check_class_names(splits: Iterable[Split]) -> None:
    """Refuse hub data sets that give one class two numbers.

    Raises:
        BadInput: naming the class and both.
    """
    numbers: dict[str, tuple[int, str]] = {}
    for split in splits:
        for source, names in split.class_names.items():
            for number, name in enumerate(names):
                before, where = numbers.setdefault(name, (number, source))
                if before != number:
                    raise BadInput(
                        f"{source} numbers the class {name} {number}, and {where} numbers it "
                        f"{before}: set task.labels to the names of the classes"
                    )


def count_classes(splits: Mapping[str, Split], labels: Sequence[str]) -> ClassCounts:
    """How many examples of each split have each class; words, where the classes are tags."""
    counts = {}
    for name, split in splits.items():
        found = Counter(label for e in split.examples for label in _counted(e))
        counts[name] = {label: found[label] for label in labels}
    return counts


def find_warnings(counts: ClassCounts, labels: Sequence[str], task: TaskConfig) -> tuple[str, ...]:
    """What a reader of the classes would ask about: like names, and classes of one split alone."""
    warnings = []
    if "-1" in labels and "-1" not in [*(label_names(task) or ()), *label_map(task).values()]:
        warnings.append(
            "the label '-1' is a class of its own, though it often means unlabelled: name it in "
            "task.skip_labels to leave its records out"
        )
    if task.kind == "tokens":
        counts = {name: _count_types(of_split) for name, of_split in counts.items()}
        labels = list(dict.fromkeys(_type_of(tag) for tag in labels if tag != "O"))
    alike = defaultdict(list)
    for label in labels:
        alike[_look(label)].append(label)
    warnings += [
        f"the labels {' and '.join(map(repr, group))} differ in nothing but capital letters, "
        "blanks or characters that do not show"
        for group in alike.values()
        if len(group) > 1
    ]
    lonely = defaultdict(list)
    for label in labels:
        having = [name for name, of_split in counts.items() if of_split.get(label)]
        if len(having) == 1 and len(counts) > 1:
            lonely[having[0]].append(label)
    warnings += [f"only task.{name} has {_list(found)}" for name, found in lonely.items()]
    return tuple(warnings)


def describe_classes(
    counts: ClassCounts, splits: Mapping[str, Split], task: TaskConfig
) -> tuple[str, ...]:
    """A line a split: its examples and how many have each class, the most frequent of very many."""
    unit = "words with each tag" if task.kind == "tokens" else "of each class"
    lines = []
    for name, of_split in counts.items():
        line = f"{name}: {len(splits[name].examples):,} examples"
        if of_split:
            shown = sorted(of_split, key=lambda label: -of_split[label])
            shown = shown if len(shown) <= 2 * _SHOWN else shown[:_SHOWN]
            parts = [f"{x} ({of_split[x]:,})" for x in of_split if x in set(shown)]
            if len(parts) < len(of_split):
                rest = sum(of_split.values()) - sum(of_split[label] for label in shown)
                parts.append(f"{len(of_split) - len(parts)} more classes ({rest:,})")
            line += f"; {unit}: {', '.join(parts)}"
        lines.append(line)
    return tuple(lines)


def _rename(example: Example, names: NameTable) -> Example:
    if not isinstance(example, TextExample) or isinstance(example.label, float):
        return example
    if isinstance(example.label, str):
        return replace(example, label=_settled(example.label, names))
    return replace(example, label=tuple(_settled(label, names) for label in example.label))


def _settled(label: str, names: NameTable) -> str:
    name = names.find(label) if isinstance(label, NumberLabel) else None
    return str(label if name is None else name)


def _order_labels(task: TaskConfig, train: Split, there: set[str]) -> tuple[str, ...]:
    named, renamed = label_names(task), label_map(task)
    if named is not None:
        for label in named:
            if renamed.get(label, label) not in there:
                train.reports[f"label {label} of task.labels without a training example"] += 1
        return tuple(dict.fromkeys(renamed.get(label, label) for label in named))
    if task.kind == "tokens":
        if there <= {"O"}:
            raise BadInput("task.train has no entity: every word of it has the tag O")
        # An entity of one word in training may be longer in the test.
        there = there | {f"I{tag[1:]}" for tag in there if tag.startswith("B")}
        return ("O", *sorted(there - {"O"}))
    if not there:
        raise BadInput("task.train has no label at all: look at task.columns.label")
    if len(there) < 2 and task.kind != "multi_label":
        raise BadInput(
            f"task.train has only the label {', '.join(there)}: training needs two or more"
        )
    return tuple(sorted(there))


def _counted(example: Example) -> Iterable[str]:
    """The classes of an example, each once; of tags each word's."""
    labels = labels_of(example)
    return labels if isinstance(example, TokenExample) else set(labels)


def _count_types(counts: Mapping[str, int]) -> dict[str, int]:
    types: Counter[str] = Counter()
    for tag, count in counts.items():
        if tag != "O":
            types[_type_of(tag)] += count
    return dict(types)


def _type_of(tag: str) -> str:
    return tag.partition("-")[2] or tag


def _look(label: str) -> str:
    """What a reader sees of a label, in small letters."""
    shown = "".join(c for c in label if unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(unicodedata.normalize("NFKC", shown).casefold().split())


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _list(labels: Sequence[str]) -> str:
    word = "the label" if len(labels) == 1 else "the labels"
    shown = ", ".join(map(repr, labels[:_SHOWN]))
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"{word} {shown}{more}"
