"""Which records a split takes: those whose fields have one of the values of `where`."""

from collections.abc import Callable
from typing import Any

from bert.tasks.config import Scalar, SplitConfig
from bert.tasks.formats.examples import BY_VALUE, Split
from bert.tasks.formats.fields import describe
from distributed.errors import BadInput

UNMATCHED = "values of where that no record has"


class Selection:
    """The `where` of a split, and which of its values a record has had."""

    def __init__(self, split: SplitConfig, out: Split) -> None:
        self._out = out
        self._wanted = {
            name: wanted if isinstance(wanted, list) else [wanted]
            for name, wanted in split.where.items()
        }
        self._unmatched = {
            (name, i) for name, all_ in self._wanted.items() for i in range(len(all_))
        }

    def takes(self, find: Callable[[str], Any], place: str) -> bool:
        """Whether the record at `place` has one of the values in each field, which `find` gives."""
        is_taken = True
        for name, wanted in self._wanted.items():
            value = find(name)
            found = {(name, i) for i, one in enumerate(wanted) if _equals(value, one, place, name)}
            self._unmatched -= found
            if found != {(name, i) for i, one in enumerate(wanted) if str(value) == str(one)}:
                self._out.newer_rules.add(BY_VALUE)
            is_taken = is_taken and bool(found)
        return is_taken

    def report(self) -> None:
        """Count the values that no record has: one of them may be misspelt."""
        if self._unmatched:
            self._out.reports[UNMATCHED] += len(self._unmatched)


def _equals(value: Any, wanted: Scalar, place: str, column: str) -> bool:
    """Whether a field has the value: a number counts by value."""
    if isinstance(value, list | dict):
        raise BadInput(
            f"{place} has {describe(value)} in the column {column}, which task.*.where compares: "
            "name a column with one value"
        )
    if isinstance(value, bool):
        return str(value).lower() == str(wanted).lower()
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return not isinstance(wanted, bool) and value == wanted
    return str(value) == str(wanted)
