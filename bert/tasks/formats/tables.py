"""Tab-separated tables -> rows of cells, and whether their quotes belong to the text.

GLUE and BLURB write " as it is. pandas, csv.writer and R put a cell in quotes and double those
inside. Two files may look alike in a line, so the whole file decides:

    every cell with a quote is a quoted cell that needs its quotes    quoted, as csv.writer writes
    every cell that is no number is quoted, the header too            quoted, as with QUOTE_ALL
    a quote inside a cell that is not quoted                          plain
    quoted cells, none of which needs its quotes                      plain
    quoted cells, some of which need their quotes                     not known: task.quotes decides

A quoted cell needs its quotes if it has a doubled quote, a tab or the end of a line inside.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator

from bert.tasks.formats.examples import NO_QUOTES, Split
from distributed.errors import BadInput

KEPT_QUOTES = "cells in quotes with doubled quotes inside read as they are (see task.quotes)"
_CELL = re.compile(r'("[^"]*+(?:""[^"]*+)*+"|[^"\t\r\n]*)(\t|\r?\n|\Z)')
_NEEDED = re.compile(r'""|[\t\r\n]')
_NUMBER = re.compile(r"[+-]?[\d.]*([eE][+-]?\d+)?", re.ASCII)
_QUOTED_ALIKE = re.compile(r'(?:^|\t)"[^"\t]*(?:""[^"\t]*)+"(?=\t|$)')


def read_cells(
    text: str, place: str, *, header: bool, quotes: bool | None, out: Split
) -> Iterator[tuple[int, list[str]]]:
    """Number of its first line, and cells, of each row that is not blank.

    Args:
        text: the whole table.
        place: the file's name, for messages.
        header: whether the first row names the columns.
        quotes: whether cells may be quoted; None decides from the table.
        out: counts what was read as it is and might be meant otherwise.

    Raises:
        BadInput: the table cannot be read so, or the answer is not known.
    """
    is_known = quotes is not None
    if quotes is None:
        quotes = '"' in text and _find_quoting(text, place, header=header)
    if quotes:
        out.newer_rules.add(NO_QUOTES)
        yield from _read_quoted(text, place)
    else:
        yield from _read_plain(text, out.reports, is_known=is_known)


def _find_quoting(text: str, place: str, *, header: bool) -> bool:
    """Whether the table is quoted, by the rules at the top of this file."""
    needed, needless = "", ""  # the first quoted cell of each sort
    bare = False  # a cell without quotes in the header, or one below it that is no number
    spans_lines, is_header = False, header
    for _, cells in _scan(text):
        if not cells:
            return False
        for cell in cells:
            if not cell.startswith('"'):
                bare = bare or (is_header and cell != "") or not _NUMBER.fullmatch(cell)
            elif _NEEDED.search(cell, 1, len(cell) - 1):
                needed = needed or cell
                spans_lines = spans_lines or "\n" in cell
            elif len(cell) > 2:
                needless = needless or cell
        is_header = is_header and cells == [""]  # a blank line before it
    if spans_lines and _lines_are_rows(text):
        return False  # read line by line it is a table; the quotes only happen to pair up
    if not needless or not bare:
        return bool(needed or not bare)
    if not needed:
        return False
    raise BadInput(
        f"{place} may be quoted or not: the cell {needed[:40]!r} looks enclosed in quotes, and the "
        f"quotes of {needless[:40]!r} look like text: set task.quotes to true if quotes enclose "
        "cells, or to false if they are text"
    )


def _scan(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells, quotes and all, of each row; no cells where a quote is out of place.

    Such a row is the last.
    """
    at, line = 0, 1
    while at < len(text):
        end_of_line = text.find("\n", at) % (len(text) + 1)  # -1, none, is the end of the text
        if text.find('"', at, end_of_line) < 0:  # most rows
            yield line, text[at:end_of_line].removesuffix("\r").split("\t")
            at, line = end_of_line + 1, line + 1
            continue
        first, cells, end = line, [], "\t"
        while end == "\t":
            match = _CELL.match(text, at)
            if match is None:
                yield first, []
                return
            cell, end = match.groups()
            cells.append(cell)
            at = match.end()
            line += cell.count("\n")
        line += 1
        yield first, cells


def _lines_are_rows(text: str) -> bool:
    """Whether each line has as many columns as every other."""
    return len({line.count("\t") for line in text.split("\n") if line.strip()}) == 1


def _read_quoted(text: str, place: str) -> Iterator[tuple[int, list[str]]]:
    for number, cells in _scan(text):
        if not cells:
            raise BadInput(
                f"{place} line {number} has a quote inside a cell that is not in quotes: set "
                "task.quotes to false if quotes are text"
            )
        if any('"' in cell for cell in cells):
            cells = [c[1:-1].replace('""', '"') if c.startswith('"') else c for c in cells]
        if any(cell.strip() for cell in cells):
            yield number, cells


def _read_plain(
    text: str, reports: Counter[str], *, is_known: bool
) -> Iterator[tuple[int, list[str]]]:
    columns = 0
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        cells = line.split("\t")
        columns = columns or len(cells)
        if not is_known and '"' in line:
            if len(cells) > columns:
                # A table of BLUE has quotes after all, around the one text with a tab in it.
                quoted = next(csv.reader([line], delimiter="\t"))
                cells = quoted if len(quoted) == columns else cells
            elif _QUOTED_ALIKE.search(line):
                reports[KEPT_QUOTES] += 1
        yield number, cells
