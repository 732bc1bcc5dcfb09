"""A text with two entities -> what the model reads of them: words around them, or in their place.

    markers    << aspirin >> inhibits [[ COX-1 ]]        both are seen; which is which, too
    dummies    @CHEMICAL$ inhibits @GENE$                their names are hidden, as BLURB does

Where the two overlap, a dummy stands for both: @CHEMICAL-GENE$.
"""

import re
from typing import Literal, NamedTuple

from distributed.errors import BadInput

_MARKS = (("<<", ">>"), ("[[", "]]"))
_FIRST = re.compile(r"<<(.*?)>>", re.DOTALL)
_SECOND = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


class Entity(NamedTuple):
    """Characters [start, end) of the text, and their type."""

    start: int
    end: int
    type: str


def show_entities(
    text: str, first: Entity, second: Entity, style: Literal["markers", "dummies"]
) -> str:
    """`text` with the two entities marked or replaced; runs of blanks become one."""
    if first.start < second.end and second.start < first.end:
        start, end = min(first.start, second.start), max(first.end, second.end)
        if style == "markers":
            shown = f"<< [[ {text[start:end]} ]] >>"
        else:
            shown = f"@{first.type}-{second.type}$"
        return _join(text[:start], shown, text[end:])
    pieces = []
    at = 0
    for entity, marks in sorted(zip((first, second), _MARKS, strict=True)):
        name = text[entity.start : entity.end]
        shown = f"{marks[0]} {name} {marks[1]}" if style == "markers" else f"@{entity.type}$"
        pieces += [text[at : entity.start], shown]
        at = entity.end
    return _join(*pieces, text[at:])


def read_marks(text: str, types: tuple[str, str], place: str) -> tuple[str, Entity, Entity]:
    """The plain text and the entities of one that has << >> and [[ ]] around them.

    Raises:
        BadInput: not exactly one of each.
    """
    found = []
    for pattern, marks, kind in zip((_FIRST, _SECOND), _MARKS, types, strict=True):
        matches = list(pattern.finditer(text))
        if len(matches) != 1:
            raise BadInput(f"{place} has {len(matches)} entities in {' '.join(marks)} instead of 1")
        found.append((matches[0], kind))
    # Take out the marks from the left; a position moves by what was taken before it.
    cuts = sorted(cut for match, _ in found for cut in _mark_spans(match))
    plain = ""
    at = 0
    for start, end in cuts:
        plain += text[at:start]
        at = end
    plain += text[at:]

    def moved(position: int) -> int:
        return position - sum(min(end, position) - start for start, end in cuts if start < position)

    first, second = (Entity(moved(m.start(1)), moved(m.end(1)), kind) for m, kind in found)
    return plain, _strip(plain, first), _strip(plain, second)


def _mark_spans(match: re.Match[str]) -> list[tuple[int, int]]:
    return [(match.start(), match.start() + 2), (match.end() - 2, match.end())]


def _strip(text: str, entity: Entity) -> Entity:
    name = text[entity.start : entity.end]
    left = len(name) - len(name.lstrip())
    return Entity(entity.start + left, entity.start + left + len(name.strip()), entity.type)


def _join(*pieces: str) -> str:
    return " ".join(" ".join(pieces).split())
