"""Offsets and the text that should stand there: two statements of one fact, compared.

Where they disagree the text counts: it is looked for near its offsets. What cannot be found has no
place, and the reader sets the record aside.
"""

import re
from collections.abc import Sequence
from itertools import combinations

Piece = tuple[int, int]  # characters [start, end)


def find_text(text: str, wanted: str, start: int) -> int:
    """Where `wanted` stands in `text`, as near to `start` as can be; -1 if nowhere."""
    if not wanted:
        return -1
    places = [match.start() for match in re.finditer(f"(?={re.escape(wanted)})", text)]
    return min(places, key=lambda place: abs(place - start), default=-1)


def find_pieces(text: str, wanted: str, pieces: Sequence[Piece]) -> tuple[list[Piece], bool] | None:
    """Where the pieces of an entity stand, and whether that is where their offsets say.

    Args:
        text: the whole.
        wanted: the entity's text: its pieces, with a blank or nothing between them.
        pieces: by their offsets.

    Returns:
        None if `wanted` cannot be found: in one piece, or in as many as there are offsets, each
        near to its own and in their order.
    """
    if all(0 <= start < end <= len(text) for start, end in pieces):
        for order in (pieces, sorted(pieces)):
            given = "".join(text[start:end] for start, end in order)
            if _squeeze(given) == _squeeze(wanted):
                return list(order), True
    if len(pieces) == 1:
        start = find_text(text, wanted, pieces[0][0])
        return None if start < 0 else ([(start, start + len(wanted))], False)
    words, pieces = wanted.split(), sorted(pieces)
    found = [
        moved
        for cuts in combinations(range(1, len(words)), len(pieces) - 1)
        if (moved := _place(text, _cut(words, cuts), pieces)) is not None
    ]
    if not found:
        return None
    return min(found, key=lambda moved: _distance(moved, pieces)), False


def _place(text: str, parts: Sequence[str], pieces: Sequence[Piece]) -> list[Piece] | None:
    """Each part at its nearest place; None if one is missing or they are not in their order."""
    moved = []
    end = 0
    for part, (start, _) in zip(parts, pieces, strict=True):
        at = find_text(text, part, start)
        if at < end:
            return None
        end = at + len(part)
        moved.append((at, end))
    return moved


def _cut(words: Sequence[str], cuts: Sequence[int]) -> list[str]:
    bounds = [0, *cuts, len(words)]
    return [" ".join(words[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _distance(moved: Sequence[Piece], pieces: Sequence[Piece]) -> int:
    return sum(abs(a - b) for (a, _), (b, _) in zip(moved, pieces, strict=True))


def _squeeze(text: str) -> str:
    return "".join(text.split())
