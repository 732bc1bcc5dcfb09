"""Records of JSON lines, Parquet and hub data sets -> the text of each.

A text field is a string or null. Nothing else is turned into text: the spelling of a list or of a
number in Python is not language.
"""

from typing import Any

from bert.corpora.formats import FIELDS
from bert.corpora.manifest import Source
from bert.corpora.markup import find_markup
from bert.corpora.text_files import Unread
from distributed.errors import BadInput

FIELDS_IN_ERROR = 10
MARKUP_SAMPLE = 20  # records of a file that are looked at for markup
MARKUP_CHARACTERS = 64 << 10  # of each
KINDS = ((bool, "true or false"), (int | float, "a number"), (bytes, "bytes"), (dict, "an object"))


def record_text(source: Source, record: dict[str, Any], *, place: str) -> str:
    """The text of a record, empty if its main field (the last of FIELDS) is null or empty.

    Raises:
        BadInput: it has no main field, or a field that `source` reads is neither string nor null.
    """
    main_field = FIELDS[source][-1]
    if main_field not in record:
        raise _without_field(source, record, place=place)
    parts = []
    for name in FIELDS[source]:
        value = record.get(name)
        if value is not None and not isinstance(value, str):
            raise BadInput(
                f"{place}: the field {name!r} is {_kind(value)}, not a string: make it one."
            )
        if value:
            parts.append(value)
    return "\n".join(parts) if (record[main_field] or "").strip() else ""


def _without_field(source: Source, record: dict[str, Any], *, place: str) -> BadInput:
    name = FIELDS[source][-1]
    if list(record) == ["index"]:  # Wikimedia's search dumps; bulk files of Elasticsearch
        return BadInput(
            f"{place} is an index line of a CirrusSearch dump, which is not read: remove these "
            "lines, for example with grep -v '^{\"index\"'."
        )
    names = sorted(record)
    has = ", ".join(names[:FIELDS_IN_ERROR]) or "none"
    more = ", ..." if len(names) > FIELDS_IN_ERROR else ""
    return BadInput(
        f"{place} has no field {name!r}, which --source {source} reads (it has {has}{more}): "
        "rename the field or change the source."
    )


def _kind(value: object) -> str:
    for kind, words in KINDS:
        if isinstance(value, kind):
            return words
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


class MarkupSample:
    """Refuses an input when half of its first records hold markup; a single one may be about it."""

    def __init__(self, name: str, field: str) -> None:
        self._name, self._field = name, field
        self._seen = self._marked = 0
        self._found: tuple[Unread, str] | None = None

    def add(self, text: str, *, place: str) -> None:
        """Look at the text of one record."""
        if self._seen == MARKUP_SAMPLE:
            return
        self._seen += 1
        found = find_markup(text[:MARKUP_CHARACTERS].lstrip())
        if found is not None:
            self._marked += 1
            self._found = self._found or (found, place)
        if self._seen == MARKUP_SAMPLE:
            self.check()

    def check(self) -> None:
        """Decide by the records so far.

        Raises:
            BadInput: half of them or more hold markup.
        """
        if self._found is not None and self._marked * 2 >= self._seen:
            found, place = self._found
            raise found.error(f"The field {self._field!r} of {place}")
