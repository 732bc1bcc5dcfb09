"""Is the start of a text file a table? It is if all its rows show the same columns.

Prose has tabs and commas too, so one row is never enough unless its cells are known field names,
and text that only looks regular is let through: indented lines, numbered lists ("1.<tab>text"),
dialogue ("NAME:<tab>text"), lines that all hold one comma followed by a blank.
"""

import csv
import re
from collections.abc import Sequence

from bert.corpora.text_files import Unread

DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
ADVICE = "write its text as JSON lines (one object a line) or Parquet"
# Names that the columns of published text tables have.
FIELD_NAME = re.compile(
    r"abstract|article|authors|body|category|comment|content|contents|date|description|doc|"
    r"document|documents|headline|id|idx|index|journal|keywords|label|labels|language|message|"
    r"number|page_title|pmcid|pmid|question|review|score|sentence|sentence1|sentence2|source|"
    r"split|summary|tag|tags|target|text|texts|title|titles|tweet|url|year",
    re.I,
)
NAME = re.compile(r"[A-Za-z_#][\w#./() -]{0,39}")
# First cells of numbered lists and of dialogue, which are plain text.
LIST_MARKER = re.compile(r"[(\[]?\w{1,6}[.)\]:]+|[-*\u2022\u2013\u2014]|[^.!?]{1,40}:")
MIN_ROWS = {"\t": 3, ",": 5, ";": 5, "|": 3}  # of a table without names of columns
SEPARATOR = re.compile(r"sep=[,;|\t]")  # the first line that tells it to Excel
THOUSANDS = re.compile(r"\d,(?=\d{3}(?!\d))")
MIN_FULL = 0.8  # share of rows with at least two cells that are not empty


def find_table(text: str, *, at_end: bool, name: str) -> Unread | None:
    """What kind of table `text` is, None if it is none.

    Args:
        text: the start of a file, its lines ended by LF.
        at_end: whether it is the whole file; else its last line may be cut.
        name: of the file; the endings .csv and .tsv make fewer rows enough.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not at_end and len(lines) > 1:
        del lines[-1]
    if not lines:
        return None
    if SEPARATOR.fullmatch(lines[0]):
        return Unread("a table for a spreadsheet (CSV)", ADVICE)
    ending = re.search(r"\.(csv|tsv|tab)(\.gz)?$", name.lower())
    for delimiter, word in DELIMITERS.items():
        has_ending = ending is not None and (delimiter == "\t") == (ending[1] != "csv")
        if _is_table(lines, delimiter, has_ending=has_ending):
            kind = {"\t": " (TSV)", ",": " (CSV)"}.get(delimiter, "")
            return Unread(f"a {word}-separated table{kind}", ADVICE)
    if _is_one_column(lines):
        return Unread("a table of one column (CSV)", ADVICE)
    return None


def _is_table(lines: Sequence[str], delimiter: str, *, has_ending: bool) -> bool:
    if delimiter not in lines[0]:
        return False
    first = [cell.strip('"') for cell in lines[0].split(delimiter)]
    names = [cell.strip() for cell in first]
    are_names = _are_names(names)
    known = sum(bool(FIELD_NAME.fullmatch(name)) for name in names) if are_names else 0
    if first == names and are_names and (known >= 2 or has_ending):
        return True  # whatever the rows are: broken, or longer than what is here
    if first == names and are_names and delimiter == "\t":
        inside = sum("\t" in line.strip() for line in lines)
        return len(lines) >= 2 and inside >= MIN_FULL * len(lines)
    rows = _read_rows(lines, delimiter)
    if len(rows) < 2 - has_ending or len({len(row) for row in rows}) != 1:
        return False
    full = sum(sum(bool(cell.strip()) for cell in row) >= 2 for row in rows)
    if full < MIN_FULL * len(rows):
        return False  # indented text, lines that end with a comma
    if has_ending or known >= 2:
        return True
    if delimiter in ",;" and any(cell[:1].isspace() for row in rows for cell in row[1:]):
        return False  # prose has a blank after a comma
    if are_names and (known or len(rows) >= 3):
        return True
    if len(rows) < MIN_ROWS[delimiter]:
        return False
    if delimiter == "," and not any("," in THOUSANDS.sub("", line) for line in lines):
        return False  # "1,000" in each line
    marked = sum(bool(LIST_MARKER.fullmatch(row[0].strip())) for row in rows)
    return len(rows[0]) > 2 or marked * 2 <= len(rows)


def _are_names(cells: Sequence[str]) -> bool:
    named = cells[1:] if cells[0] == "" else cells  # pandas leaves the index without a name
    return len(set(named)) == len(named) > 0 and all(NAME.fullmatch(cell) for cell in named)


def _read_rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The whole rows of `lines`, none if they break the rules of quoting."""
    plain = [line.split(delimiter) for line in lines]
    if delimiter == "\t" and len({len(row) for row in plain}) == 1:
        return plain  # most tab-separated files have no quoting
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" not in str(error):
            return []
    return rows  # without a quoted cell that goes on after `lines`


def _is_one_column(lines: Sequence[str]) -> bool:
    """A known field name, then one cell a row, some of them quoted because of their commas."""
    if not FIELD_NAME.fullmatch(lines[0].strip().strip('"')):
        return False
    rows = _read_rows(lines, ",")[1:]
    return (
        len(rows) > 0
        and all(len(row) == 1 for row in rows)
        and any(line.startswith('"') for line in lines[1:])
        and any("," in row[0] or '"' in row[0] for row in rows)
    )
