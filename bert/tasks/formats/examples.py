"""What a task's reader makes of a file: examples, each with its place, and what was left out.

Three shapes serve all tasks: a text or a pair with a label (classification, regression, relations),
words with a tag each (entities), a question with a context (answers that are spans of it).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

# The rules of version 2, in the words that a refusal uses.
BY_VALUE = "numbers count by value"
NO_BLANKS = "labels lose the blanks at their ends"
NO_MINUS_ONE = "the label -1 means unlabelled"
NO_QUOTES = "cells of a quoted table lose their quotes"
BEFORE_MERGING = "entities are found before their types are merged"
TEXT_COUNTS = "a text counts where its offsets disagree"
NO_CONTRADICTION = "records that contradict themselves are left out"


class NumberLabel(str):
    """A class that the file writes as a JSON number: 1 and 1.0 are two spellings of one value."""

    value: int | float

    def __new__(cls, value: int | float) -> "NumberLabel":
        """Named as Python spells the number."""
        label = super().__new__(cls, str(value))
        label.value = value
        return label


@dataclass(frozen=True)
class TextExample:
    """A text, or a pair; `label` is a class, a list of classes or a number, as the task has it."""

    text: str
    text_pair: str | None
    label: str | tuple[str, ...] | float
    place: str  # "FILE line 7", for messages
    group: str = ""  # what the text was made from, if several were: they stay in one split


@dataclass(frozen=True)
class TokenExample:
    """A sentence as words, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class QuestionExample:
    """A question about a context; every annotator's answer, and where in the context it begins."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]  # characters
    place: str


Example = TextExample | TokenExample | QuestionExample


@dataclass
class Split:
    """One split as read. `reports` counts what was skipped or changed, by its reason."""

    examples: Sequence[Example]
    reports: Counter[str] = field(default_factory=Counter)
    # How the file writes its labels: "number", "boolean" or "string" -> the first such record.
    label_types: dict[str, str] = field(default_factory=dict)
    # What a hub data set calls the classes that its rows number: source -> names.
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Rules of reading newer than the first, without which the examples would be others.
    newer_rules: set[str] = field(default_factory=set)
