"""Files of a task -> numbered lines, records or JSON, each with the place that a message names.

Gzip is told by content. Tables: .csv has commas and quotes, any other has tabs (see tables.py).
JSON lines are told by their first character, and so is a JSON array of objects.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bert.corpora.hub import HUB_PREFIX, find_data_set
from bert.tasks.formats.examples import Split
from bert.tasks.formats.tables import read_cells
from distributed.errors import BadInput

# What stands in the place of a field that a record has twice, with two values.
REPEATED = object()
_JSON_ARRAY = re.compile(r"\s*\[\s*(\{|\]\s*\Z)")
# First bytes of files that people take for text.
_OTHER_FORMATS = {
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x04": "a pickle",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass(frozen=True)
class Record:
    """One record: its fields by name (by number from 0 without a header), and its place."""

    fields: dict[str, Any]
    place: str
    # Of a hub data set: its name, and what it calls the classes that a column numbers.
    source: str = ""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class WrongColumns(BadInput):
    """A record that lacks a field, or has too many; `task.bad_records: skip` passes over it."""


class UnreadableFile(BadInput):
    """A file that is not there or cannot be read, whatever is in it."""


def read_text(path: Path) -> str:
    """The whole text of a file, gzip or not."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise UnreadableFile(f"{path} (a file of task.*) does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{path} cannot be read ({error})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Not asked before: a text may begin with the protein PAR1.
        for start, name in _OTHER_FORMATS.items():
            if data.startswith(start):
                raise BadInput(
                    f"{path} is {name}: give UTF-8 text, plain or compressed with gzip"
                ) from None
        # The position counts from behind a byte order mark, as error.object does.
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(
            f"{path} line {line} is not UTF-8 text (byte {error.object[error.start]:#04x}): "
            "convert the file, from Windows-1252 for example"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end). Only newlines end a line, unlike str.splitlines."""
    text = read_text(path)
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def read_json(path: Path) -> Any:
    """A JSON file."""
    return _parse_json(read_text(path), path)


def read_records(
    source: str, *, header: bool, quotes: bool | None = None, out: Split | None = None
) -> Iterator[Record | WrongColumns]:
    """Records of a table, a JSON-lines file, a JSON array or a hub data set.

    A record with the wrong number of columns comes as the exception, for the caller to raise or
    count.

    Args:
        source: a file, or hub:NAME[:CONFIG[:SPLIT]].
        header: whether a table's first row names its columns.
        quotes: whether a table's cells may be in quotes; None decides from the table.
        out: counts what was read as it is and might be meant otherwise.
    """
    if source.startswith(HUB_PREFIX):
        yield from _read_hub(source)
        return
    path = Path(source)
    text = read_text(path)
    if text.lstrip().startswith("{"):
        yield from _read_json_lines(text, path)
    elif _JSON_ARRAY.match(text):
        yield from _read_json_array(text, path)
    elif path.name.removesuffix(".gz").endswith(".csv"):
        if quotes is False:
            raise BadInput(f"{path} has commas, so its cells may be in quotes: unset task.quotes")
        yield from _read_table(_read_csv(text, path), path, header=header)
    else:
        found = Split([]) if out is None else out
        rows = read_cells(text, str(path), header=header, quotes=quotes, out=found)
        yield from _read_table(rows, path, header=header)


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_join_pairs)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} line {error.lineno} is not JSON ({error.msg})") from None
    except RecursionError:
        raise BadInput(f"{path} is nested too deeply for JSON that holds a task") from None


def _join_pairs(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A record of names and values; a name that comes again with another value is REPEATED."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        fields[name] = REPEATED if name in fields and fields[name] != value else value
    return fields


def _read_json_lines(text: str, path: Path) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            fields = json.loads(line, object_pairs_hook=_join_pairs)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{place} is not JSON ({error.msg}): each line must be one object"
            ) from None
        except RecursionError:
            raise BadInput(f"{place} is nested too deeply for a record") from None
        if not isinstance(fields, dict):
            raise BadInput(f"{place} is not a JSON object")
        yield Record(fields, place)


def _read_json_array(text: str, path: Path) -> Iterator[Record]:
    for number, fields in enumerate(_parse_json(text, path), start=1):
        if not isinstance(fields, dict):
            raise BadInput(f"{path} element {number} is not a JSON object")
        yield Record(fields, f"{path} element {number}")


def _read_table(
    rows: Iterable[tuple[int, list[str]]], path: Path, *, header: bool
) -> Iterator[Record | WrongColumns]:
    names: list[str] | None = None
    for number, cells in rows:
        place = f"{path} line {number}"
        if names is None:
            names = cells if header else [str(i) for i in range(len(cells))]
            if header:
                continue
        if len(cells) == len(names):
            yield Record(_join_pairs(zip(names, cells, strict=True)), place)
        else:
            yield WrongColumns(f"{place} has {len(cells)} columns instead of {len(names)}")


def _read_csv(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise BadInput(f"{path} line {reader.line_num} is not CSV ({error})") from None


def _read_hub(source: str) -> Iterator[Record]:
    name, config, split, revision = find_data_set(source)
    from datasets import load_dataset  # slow to import, and seldom needed

    try:
        rows = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # a dozen kinds, of three libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UnreadableFile(
            f"{source} cannot be loaded ({type(error).__name__}: {reason}): check its name and "
            "split, or give files that are on this machine"
        ) from None
    names = _class_names(rows.features)
    for index, row in enumerate(rows):
        yield Record(dict(row), f"{source} row {index}", source, names)


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What the columns that number classes call them."""
    found = {}
    for column, feature in features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[column] = tuple(map(str, names))
    return found
