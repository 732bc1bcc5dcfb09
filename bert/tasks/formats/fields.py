"""What a field of a record may hold: a text, a list of texts, a label, a score, or it is an error.

A value of another type is never turned into text. The error names the file, the record and the
column.
"""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from bert.tasks.formats.examples import NumberLabel
from bert.tasks.formats.sources import REPEATED, Record, WrongColumns
from distributed.errors import BadInput

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# An array of numbers or truth values as numpy and JSON write it.
_ARRAY = re.compile(
    r"\[\s*(([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|true|false|null|True|False|nan|NaN)[\s,]*)*\]"
)
_SHOWN_CHARACTERS = 40


def find_field(record: Record, name: str) -> Any:
    """The field `name`, or else the one at the end of the dotted path `name`.

    Raises:
        WrongColumns: there is none; the message lists those that there are.
        BadInput: the record has the field twice, with two values.
    """
    value = record.fields.get(name, _MISSING)
    if value is _MISSING:
        value = _follow_path(record.fields, name)
    if value is _MISSING:
        there = ", ".join(map(str, record.fields))
        raise WrongColumns(f"{record.place} has no column {name} (task.columns), but {there}")
    if value is REPEATED:
        raise BadInput(f"{record.place} has the column {name} twice, with two values: remove one")
    return value


def as_text(value: Any, record: Record, column: str) -> str:
    """A string without the blanks at its ends; the strings of a list with a blank between them.

    Null is an empty text.
    """
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(part.strip() for part in check_strings(value, record.place, column))
    if not isinstance(value, str):
        raise BadInput(
            f"{record.place} has {describe(value)} in the column {column}, where a text or a list "
            f"of texts must be{_suggest_path(value, column)}"
        )
    return value.strip()


def check_strings(value: Any, place: str, name: str) -> list[str]:
    """`value`, which must be a list of strings."""
    if not isinstance(value, list):
        raise BadInput(f"{place} has {describe(value)} in {name}, where a list of texts must be")
    for part in value:
        if not isinstance(part, str):
            raise BadInput(
                f"{place} has {describe(part)} among the texts of {name}, which must be strings"
            )
    return value


def check_string(value: Any, place: str, name: str) -> str:
    """`value`, which must be a string."""
    if not isinstance(value, str):
        raise BadInput(f"{place} has {describe(value)} in {name}, where a text must be")
    return value


def as_key(value: Any, record: Record, column: str) -> str:
    """A string or a whole number that identifies something, as a string."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadInput(
            f"{record.place} has {describe(value)} in the column {column}, where a name or a whole "
            "number must be"
        )
    return str(value)


def as_score(value: Any, record: Record) -> float:
    """A finite number, or a text that is one."""
    text = value.strip() if isinstance(value, str) else ""
    if _NUMBER.fullmatch(text) or _is_number(value):
        number = float(value)
        if math.isfinite(number):
            return number
    shown = _cut(repr(value))
    raise BadInput(f"{record.place} has {shown} as its score, which is no finite number")


def as_label(value: Any, record: Record, column: str) -> str:
    """One label: a string without the blanks at its ends, a number, or True or False.

    Null and an empty string are "".
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if _is_number(value) and math.isfinite(value):
        return NumberLabel(value)
    if not isinstance(value, str):
        raise BadInput(
            f"{record.place} has {describe(value)} as a label in the column {column}, where a "
            f"string or a number must be{_suggest_path(value, column)}"
        )
    label = value.strip()
    if spells_a_list(label):
        raise BadInput(
            f"{record.place} has the label {_cut(label)} in the column {column}, which spells a "
            "list as text: write JSON lines with a list, or the labels with "
            "task.label_separator between them"
        )
    return label


def number_of(name: str) -> int | float | None:
    """The number that a label's name spells; None if it spells none."""
    if not _NUMBER.fullmatch(name):
        return None
    return int(name) if re.fullmatch(r"[+-]?\d+", name, re.ASCII) else float(name)


def spells_a_list(text: str) -> bool:
    """Whether `text` is a list, an array or an object as Python, numpy or JSON write it."""
    if len(text) < 2 or (text[0], text[-1]) not in (("[", "]"), ("(", ")"), ("{", "}")):
        return False
    if _ARRAY.fullmatch(text):
        return True
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, list | tuple | set | dict)


def describe(value: Any) -> str:
    """`value` in the words of JSON."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return _cut(repr(value))
    return f"a value of type {type(value).__name__}"


_MISSING = object()


def _follow_path(fields: Mapping[str, Any], name: str) -> Any:
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _suggest_path(value: Any, column: str) -> str:
    """What to name in place of an object."""
    if not isinstance(value, dict) or not value:
        return ""
    return ": task.columns can name " + " or ".join(f"{column}.{name}" for name in list(value)[:6])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
