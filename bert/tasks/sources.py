"""Files of a task -> numbered lines, records or JSON, each with the place that a message names.

Gzip is told by content. Tables: .csv has commas and quotes, any other has tabs and no quotes (GLUE
and BLURB write " as it is), but for a line that has too many columns without them. JSON lines are
told by their first character.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.errors import BadInput

HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class Record:
    """One record: its fields by name (by number from 0 without a header), and its place."""

    fields: dict[str, Any]
    place: str


class WrongColumns(BadInput):
    """A record that lacks a field, or has too many; `task.bad_records: skip` passes over it."""


def read_text(path: Path) -> str:
    """The whole text of a file, gzip or not."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{path} (a file of task.*) does not exist") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{path} line {line} is not UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({error})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end). Only newlines end a line, unlike str.splitlines."""
    text = read_text(path)
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def read_json(path: Path) -> Any:
    """A JSON file."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} line {error.lineno} is not JSON ({error.msg})") from None


def read_records(source: str, *, header: bool) -> Iterator[Record | WrongColumns]:
    """Records of a table, a JSON-lines file or a hub data set.

    A record with the wrong number of columns comes as the exception, for the caller to raise or
    count.
    """
    if source.startswith(HUB_PREFIX):
        yield from _read_hub(source)
        return
    path = Path(source)
    if read_text(path).lstrip().startswith("{"):
        yield from _read_json_lines(path)
    else:
        yield from _read_table(path, header=header)


def field(record: Record, name: str) -> Any:
    """The field `name`.

    Raises:
        WrongColumns: there is none; the message lists those that there are.
    """
    if name not in record.fields:
        there = ", ".join(map(str, record.fields))
        raise WrongColumns(f"{record.place} has no column {name} (task.columns), but {there}")
    return record.fields[name]


def _read_json_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{place} is not JSON ({error.msg})") from None
        if not isinstance(fields, dict):
            raise BadInput(f"{place} is not a JSON object")
        yield Record(fields, place)


def _read_table(path: Path, *, header: bool) -> Iterator[Record | WrongColumns]:
    names: list[str] | None = None
    for number, cells in _read_cells(path):
        place = f"{path} line {number}"
        if names is None:
            names = cells if header else [str(i) for i in range(len(cells))]
            if header:
                continue
        if len(cells) == len(names):
            yield Record(dict(zip(names, cells, strict=True)), place)
        else:
            yield WrongColumns(f"{place} has {len(cells)} columns instead of {len(names)}")


def _read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    if path.name.removesuffix(".gz").endswith(".csv"):
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise BadInput(f"{path} line {reader.line_num} is not CSV ({error})") from None
        return
    columns = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        cells = line.split("\t")
        columns = columns or len(cells)
        if len(cells) > columns and '"' in line:
            # A table of BLUE has quotes after all, around the one text with a tab in it.
            quoted = next(csv.reader([line], delimiter="\t"))
            cells = quoted if len(quoted) == columns else cells
        yield number, cells


def _read_hub(source: str) -> Iterator[Record]:
    from bert.corpora.inputs import hub_input  # slow to import, and seldom needed

    found = hub_input(source)
    from datasets import load_dataset

    assert found.hub is not None
    name, config, split, revision = found.hub
    try:
        rows = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # a dozen kinds, of three libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BadInput(
            f"{source} cannot be loaded ({type(error).__name__}: {reason}): check its name and "
            "split, or give files that are on this machine"
        ) from None
    for index, row in enumerate(rows):
        yield Record(dict(row), f"{source} row {index}")
