"""The labels of one record: one class, or several; which records have none and are left out.

String labels lose the blanks at their ends and nothing else. JSON numbers count by value, and -1
means that nobody has labelled the record, unless the task names it.
"""

import re
from collections.abc import Iterable
from typing import Any

from bert.tasks.config import TaskConfig
from bert.tasks.formats.examples import BY_VALUE, NO_BLANKS, NO_MINUS_ONE, NumberLabel, Split
from bert.tasks.formats.fields import as_label, describe, number_of
from bert.tasks.formats.sources import Record
from distributed.errors import BadInput

SKIPPED_LABEL = "records with a label of task.skip_labels skipped"
UNLABELLED = "records with the label -1, which means unlabelled, left out"
# BLUE writes the classes of HoC as 0_0,1_1,...: number of the class, then whether it applies.
_INDEXED_LABELS = re.compile(r"\d+_[01](,\d+_[01])*")


class SkippedRecord(Exception):
    """A record to leave out and count; the message is the reason that is counted."""


class NameTable:
    """Names of labels: finds the one that a label means, a number by its value."""

    def __init__(self, names: Iterable[str]) -> None:
        """Of two names for one number the first counts."""
        self._names: set[str] = set()
        self._by_value: dict[int | float, str] = {}
        for name in names:
            self._names.add(name)
            value = number_of(name)
            if value is not None:
                self._by_value.setdefault(value, name)

    def find(self, label: str) -> str | None:
        """The name that is equal to a string, or has the value of a number; None without one."""
        if isinstance(label, NumberLabel):
            return self._by_value.get(label.value)
        return label if label in self._names else None


def label_names(task: TaskConfig) -> list[str] | None:
    """task.labels as they are compared: without blanks at their ends."""
    return None if task.labels is None else [label.strip() for label in task.labels]


def label_map(task: TaskConfig) -> dict[str, str]:
    """task.label_map, its old names as they are compared."""
    return {name.strip(): new for name, new in task.label_map.items()}


class LabelReader:
    """Reads the labels of a split, and remembers in `out` how the files write them."""

    def __init__(self, task: TaskConfig, out: Split) -> None:
        self._task, self._out = task, out
        self._column = task.columns.label
        self._map = label_map(task)
        self._mapped = NameTable(self._map)
        self._skipped = NameTable(task.skip_labels)
        named = [*(label_names(task) or ()), *self._map, *task.negative_labels]
        self._named = NameTable(named)
        self._named_set = set(named)
        self._indices: list[str] | None = None
        self._lists: dict[tuple[Any, ...], str] = {}  # each list of labels -> where it is first

    def read_one(self, value: Any, record: Record) -> str:
        """The class of a record that has one.

        Raises:
            SkippedRecord: it is to be left out.
            BadInput: the record has no label, or one that is none.
        """
        label = as_label(value, record, self._column)
        if not label:
            raise BadInput(f"{record.place} has no label in column {self._column}")
        return self._name(label, value, record)

    def read_several(self, value: Any, record: Record) -> tuple[str, ...]:
        """The classes of a record that may have any number of them.

        Raises:
            SkippedRecord: it is to be left out.
            BadInput: it has something else.
        """
        if isinstance(value, list):
            return self._read_list(value, record)
        if value is None or isinstance(value, bool | dict):
            raise BadInput(
                f"{record.place} has {describe(value)} in the column {self._column}, where a list "
                "of labels must be"
            )
        label = as_label(value, record, self._column)
        if isinstance(label, NumberLabel):
            if not label.value:
                self._out.newer_rules.add(BY_VALUE)  # 0 was no label at all
            return (self._name(label, value, record),)
        if _INDEXED_LABELS.fullmatch(label):
            parts: Iterable[str] = self._read_indexed(label, record)
        else:
            parts = (part.strip() for part in label.split(self._task.label_separator))
        return tuple(self._name(part, part, record) for part in parts if part)

    def finish(self) -> None:
        """Check what only all records together show.

        Raises:
            BadInput: the lists are zeros and ones, a place for each of two classes.
        """
        if self._lists.keys() == {(0, 1), (1, 0)}:
            raise BadInput(
                f"{self._lists[0, 1]} and all other records have the list [0, 1] or [1, 0] in the "
                f"column {self._column}, a place for each of two classes: write the labels "
                "themselves into the lists"
            )

    def _read_list(self, values: list[Any], record: Record) -> tuple[str, ...]:
        for value in values:
            if value is None or value == "" or isinstance(value, bool | list | dict):
                raise BadInput(
                    f"{record.place} has {describe(value)} among the labels of the column "
                    f"{self._column}: they must be strings or numbers"
                )
        labels = [as_label(value, record, self._column) for value in values]
        numbers = [label.value for label in labels if isinstance(label, NumberLabel)]
        if len(set(numbers)) < len(numbers) or any(number % 1 for number in numbers):
            raise BadInput(
                f"{record.place} has a number twice or a fraction among the labels of the column "
                f"{self._column}: a place for each class, with zeros and ones or probabilities, is "
                "not read, so write the labels themselves into the list"
            )
        if len(self._lists) < 3:
            self._lists.setdefault(tuple(values), record.place)
        if -1 in numbers and len(labels) > 1 and self._named.find(NumberLabel(-1)) is None:
            raise BadInput(
                f"{record.place} has the label -1, which means unlabelled, beside others: name "
                "-1 in task.labels if it is a class"
            )
        return tuple(
            self._name(label, value, record) for label, value in zip(labels, values, strict=True)
        )

    def _read_indexed(self, label: str, record: Record) -> list[str]:
        pairs = [part.split("_") for part in label.split(",")]
        indices = [index for index, _ in pairs]
        self._indices = self._indices or indices
        if indices != self._indices:
            raise BadInput(
                f"{record.place} numbers the classes {indices[0]} to {indices[-1]} "
                f"({len(indices)}) in the column {self._column}, and the first record "
                f"{self._indices[0]} to {self._indices[-1]} ({len(self._indices)})"
            )
        return [index for index, applies in pairs if applies == "1"]

    def _name(self, label: str, value: Any, record: Record) -> str:
        """The class that a label means."""
        kinds = {bool: "boolean", str: "string"}
        self._out.label_types.setdefault(kinds.get(type(value), "number"), record.place)
        if isinstance(value, str) and value != label:
            self._out.newer_rules.add(NO_BLANKS)
        if self._task.kind != "multi_label" and self._find(self._skipped, label) is not None:
            raise SkippedRecord(SKIPPED_LABEL)
        if isinstance(label, NumberLabel):
            label = self._name_number(label, record)
        name = self._find(self._mapped, label)
        return label if name is None else self._map[name]

    def _find(self, names: NameTable, label: str) -> str | None:
        name = names.find(label)
        if name is not None and name != label:
            self._out.newer_rules.add(BY_VALUE)
        return name

    def _name_number(self, label: NumberLabel, record: Record) -> str:
        """A number's class: itself, or the name that a hub data set has for it if the task uses it.

        Raises:
            SkippedRecord: it is -1, which the task does not name.
        """
        if label.value == -1 and self._named.find(label) is None:
            self._out.newer_rules.add(NO_MINUS_ONE)
            raise SkippedRecord(UNLABELLED)
        names = record.class_names.get(self._column, ())
        if not names or not 0 <= label.value < len(names):
            return label
        if not self._named_set.isdisjoint(names):
            return names[int(label.value)]
        self._out.class_names[record.source] = names
        return label
