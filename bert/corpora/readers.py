"""Files, folders, globs and hub names -> documents. What a file is, its content decides.

| content      | one document is                                                                   |
|--------------|-----------------------------------------------------------------------------------|
| JSON lines   | one object: the fields of FIELDS[source], joined by a line break                  |
| Parquet, hub | one row: the same fields                                                          |
| PubMed XML   | one citation with an abstract (source pubmed only; see pubmed.py)                 |
| plain text   | source books: the file. Otherwise the lines between two blank lines, the layout   |
|              | that BERT's own data scripts read (so for one document a line, write JSON lines)  |

Any of them may be gzip-compressed. A plain-text document ends at the first line end past
MAX_TEXT_CHARACTERS, so that one file of all books does not have to fit in memory; this is counted.

JSON lines are read as lines through `datasets` and parsed here: its own JSON loader infers column
types from the content, and turned a title "2019-01-01" into a datetime (datasets 5.2).
"""

import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bert.corpora.inputs import Input, list_inputs
from bert.corpora.pubmed import open_bytes, read_pubmed
from distributed.errors import BadInput

Source = Literal["wikipedia", "books", "pubmed", "text"]
Format = Literal["json", "text", "parquet", "xml", "empty"]
FIELDS: dict[Source, tuple[str, ...]] = {
    "wikipedia": ("title", "text"),
    "books": ("text",),
    "pubmed": ("title", "abstract"),
    "text": ("text",),
}
MAX_TEXT_CHARACTERS = 1_000_000
XML_STARTS = (b"<?xml", b"<!DOCTYPE", b"<MedlineCitationSet", b"<PubmedArticleSet")
ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Document:
    text: str
    input: str  # the input it came from, as in `Input.name`


def read_documents(source: Source, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Document]:
    """Every document of `paths`: list_inputs() and read_inputs() in one, without the counts."""
    return read_inputs(source, list_inputs(paths), dropped=Counter())


def read_inputs(
    source: Source, inputs: Sequence[Input], *, dropped: Counter[str]
) -> Iterator[Document]:
    """Every document of `inputs`, all PubMed XML last. Adds to `dropped` what is left out.

    Raises:
        BadInput: a file is damaged, not what `source` needs, or a record lacks a field.
    """
    check_source(source)
    xml_paths = []
    for item in inputs:
        if item.hub is not None:
            yield from _hub_documents(source, item, dropped=dropped)
            continue
        path = Path(item.name)
        kind = detect_format(path)
        if kind == "empty":
            dropped["empty_files"] += 1
        elif kind == "json":
            yield from _json_documents(source, path, dropped=dropped)
        elif kind == "parquet":
            rows = _rows("parquet", path)
            yield from _row_documents(source, rows, name=item.name, dropped=dropped)
        elif kind == "text":
            yield from _text_documents(source, path, dropped=dropped)
        elif source == "pubmed":
            xml_paths.append(path)
        else:
            raise BadInput(f"{path} is XML, which --source {source} does not read: use pubmed.")
    for path, text in read_pubmed(xml_paths, dropped=dropped):
        yield Document(text, str(path))


def check_source(source: str) -> None:
    if source not in FIELDS:
        raise BadInput(f"There is no source {source!r}: choose one of {', '.join(FIELDS)}.")


def detect_format(path: Path) -> Format:
    """What a file holds, by its first bytes, compressed or not."""
    try:
        with open_bytes(path) as stream:
            head = stream.read(1024)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    if head.startswith(b"PAR1"):
        return "parquet"
    if b"\0" in head:
        raise BadInput(
            f"{path} is neither text, JSON lines, PubMed XML nor Parquet (gzip or not): "
            "convert it to one of them."
        )
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        return "empty" if len(head) < 1024 else "text"
    if start.startswith(b"{"):
        return "json"
    if start.startswith(b"[") and start[1:].lstrip().startswith(b"{"):
        raise BadInput(f"{path} is one JSON array: write JSON lines, one object a line.")
    return "xml" if start.startswith(XML_STARTS) else "text"


def _json_documents(source: Source, path: Path, *, dropped: Counter[str]) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            reason = str(error).split(":")[0]
            raise BadInput(f"{path} line {number} is not valid JSON ({reason}): mend it.") from None
        place = f"{path} line {number}"
        if not isinstance(record, dict):
            raise BadInput(f"{place} is not a JSON object: write one object a line.")
        text = _record_text(source, record, place=place, dropped=dropped)
        if text:
            yield Document(text, str(path))


def _hub_documents(source: Source, item: Input, *, dropped: Counter[str]) -> Iterator[Document]:
    assert item.hub is not None
    name, config, split, revision = item.hub
    try:
        rows = _rows(name, None, config=config, split=split, revision=revision)
        yield from _row_documents(source, rows, name=item.name, dropped=dropped)
    except BadInput:
        raise
    except Exception as error:  # a dozen kinds, of three libraries
        raise BadInput(
            f"The data set {item.name} cannot be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): check its configuration and split."
        ) from None


def _row_documents(
    source: Source, rows: Iterable[dict[str, Any]], *, name: str, dropped: Counter[str]
) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        text = _record_text(source, row, place=f"{name} record {number}", dropped=dropped)
        if text:
            yield Document(text, name)


def _record_text(
    source: Source, record: dict[str, Any], *, place: str, dropped: Counter[str]
) -> str:
    """The text of a record, empty if its main field (the last of FIELDS) is null or empty."""
    parts = []
    for name in FIELDS[source]:
        value = record.get(name)
        is_main = name == FIELDS[source][-1]
        if is_main and name not in record:
            raise BadInput(
                f"{place} has no field {name!r}, which --source {source} reads (it has "
                f"{', '.join(sorted(record)) or 'none'}): rename the field or change the source."
            )
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{place}: the field {name!r} is not a string: make it one.")
        if is_main and not (value and value.strip()):
            dropped[f"without_{name}"] += 1
            return ""
        if value:
            parts.append(value)
    return "\n".join(parts)


def _text_documents(source: Source, path: Path, *, dropped: Counter[str]) -> Iterator[Document]:
    lines: list[str] = []
    size = 0
    for line in _lines(path):
        is_blank = not line.strip()
        is_end = is_blank and source != "books"
        if not is_blank:
            lines.append(line)
            size += len(line) + 1
        if size > MAX_TEXT_CHARACTERS:
            is_end = True
            dropped["documents_cut_for_length"] += 1
        if is_end and lines:
            yield Document("\n".join(lines), str(path))
            lines, size = [], 0
    if lines:
        yield Document("\n".join(lines), str(path))


def _lines(path: Path) -> Iterator[str]:
    for index, row in enumerate(_rows("text", path)):
        line: str = row["text"]
        yield line.removeprefix("\ufeff") if index == 0 else line


def _rows(
    builder: str,
    path: Path | None,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a local file or of a hub data set, through a streaming `datasets` loader."""
    import datasets  # slow to import

    # Its lock files and scripts go where they are removed again, not below the working directory.
    with tempfile.TemporaryDirectory(prefix="sparsebert-datasets-") as cache:
        try:
            data_files = None
            if path is not None:
                data_files = [os.path.join(cache, "input")]
                _link(path, data_files[0], unpacked=builder == "parquet")
            rows = datasets.load_dataset(
                builder,
                config,
                data_files=data_files,
                split=split,
                revision=revision,
                streaming=True,
                cache_dir=cache,
            )
            for batch in rows.iter(batch_size=ROWS_PER_BATCH):
                names = list(batch)
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(names, values, strict=True))
        except (EOFError, OSError, UnicodeDecodeError, ValueError, zlib.error) as error:
            if path is None or isinstance(error, BadInput):
                raise
            raise _unreadable(path, error) from None


def _link(path: Path, link: str, *, unpacked: bool) -> None:
    """A plain name for a file: `datasets` takes names for patterns, and misses "a[1].txt"."""
    with open_bytes(path) as stream:
        if unpacked and isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            with open(link, "wb") as file:
                shutil.copyfileobj(stream, file)
        else:
            os.symlink(path.resolve(), link)


def _unreadable(path: Path, error: Exception) -> BadInput:
    if isinstance(error, UnicodeDecodeError):
        return BadInput(f"{path} is not UTF-8 text ({error.reason}): convert it to UTF-8.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BadInput(f"{path} is damaged or incomplete ({reason}): fetch it again.")
