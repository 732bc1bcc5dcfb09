"""Files, folders, globs and hub names -> documents. formats.py decides what a file is.

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
from typing import Any

from bert.corpora.formats import FIELDS, Format, check_source
from bert.corpora.inputs import Input
from bert.corpora.manifest import Source
from bert.corpora.markup import DOC, DOC_LINE, END_OF_TEXT, END_OF_TEXT_LINE
from bert.corpora.pubmed import read_pubmed
from bert.corpora.records import MarkupSample, record_text
from bert.corpora.text_files import open_bytes, unreadable
from distributed.errors import BadInput, first_line

MAX_TEXT_CHARACTERS = 1_000_000
ROWS_PER_BATCH = 256
# So many NUL characters in a row are a hole in the file, which holds less than was written.
HOLE = "\0" * 16


@dataclass(frozen=True)
class Document:
    text: str
    input: str  # the input it came from, as in `Input.name`
    format: Format


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
        path = Path(item.name)
        if item.format == "empty":
            dropped["empty_files"] += 1
        elif item.format == "xml":
            xml_paths.append(path)
        else:
            for text in _texts(source, item, dropped=dropped):
                yield Document(text, item.name, item.format)
    for path, text in read_pubmed(xml_paths, dropped=dropped):
        yield Document(text, str(path), "xml")


def _texts(source: Source, item: Input, *, dropped: Counter[str]) -> Iterator[str]:
    path = Path(item.name)
    if item.format == "text":
        return _plain_texts(source, path, dropped=dropped)
    if item.format == "json":
        records = _json_records(path)
    elif item.format == "parquet":
        records = _numbered(_rows("parquet", path), name=item.name)
    else:
        records = _hub_records(item)
    return _record_texts(source, records, name=item.name, dropped=dropped)


def _record_texts(
    source: Source,
    records: Iterable[tuple[str, dict[str, Any]]],
    *,
    name: str,
    dropped: Counter[str],
) -> Iterator[str]:
    main_field = FIELDS[source][-1]
    sample = MarkupSample(name, main_field)
    for place, record in records:
        text = record_text(source, record, place=place)
        if not text:
            dropped[f"without_{main_field}"] += 1
            continue
        sample.add(record[main_field], place=place)
        yield text
    sample.check()


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{place} is not valid JSON ({_reason(error)}): mend it.") from None
        except (ValueError, RecursionError) as error:  # numbers or nesting without end
            raise BadInput(f"{place} is not valid JSON ({first_line(error)}): mend it.") from None
        if not isinstance(record, dict):
            raise BadInput(f"{place} is not a JSON object: write one object a line.")
        yield place, record


def _reason(error: json.JSONDecodeError) -> str:
    if error.msg != "Extra data":
        return error.msg
    rest = error.doc[error.pos :].strip()
    return "a comma after the object" if rest == "," else "more than one value in it"


def _hub_records(item: Input) -> Iterator[tuple[str, dict[str, Any]]]:
    assert item.hub is not None
    name, config, split, revision = item.hub
    rows = _rows(name, None, config=config, split=split, revision=revision)
    try:
        yield from _numbered(rows, name=item.name)
    except BadInput:
        raise
    except Exception as error:  # a dozen kinds, of three libraries
        raise BadInput(
            f"The data set {item.name} cannot be read ({type(error).__name__}: "
            f"{first_line(error)}): check its configuration and split."
        ) from None


def _numbered(rows: Iterable[dict[str, Any]], *, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, start=1):
        yield f"{name} record {number}", row


def _plain_texts(source: Source, path: Path, *, dropped: Counter[str]) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for number, line in enumerate(_lines(path), start=1):
        _check_line(line, path=path, number=number)
        is_blank = not line.strip()
        is_end = is_blank and source != "books"
        if not is_blank:
            lines.append(line)
            size += len(line) + 1
        if size > MAX_TEXT_CHARACTERS:
            is_end = True
            dropped["documents_cut_for_length"] += 1
        if is_end and lines:
            yield "\n".join(lines)
            lines, size = [], 0
    if lines:
        yield "\n".join(lines)


def _check_line(line: str, *, path: Path, number: int) -> None:
    """Raise BadInput at what no plain text has, wherever it is in the file."""
    if line.startswith("<"):
        if DOC_LINE.fullmatch(line.rstrip()):
            raise DOC.error(f"{path} (line {number})")
        if line.rstrip() == END_OF_TEXT_LINE:
            raise END_OF_TEXT.error(f"{path} (line {number})")
    if HOLE in line:
        raise BadInput(
            f"{path} line {number} holds NUL bytes, so the file is damaged: fetch it again."
        )


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
            raise unreadable(path, error) from None


def _link(path: Path, link: str, *, unpacked: bool) -> None:
    """A plain name for a file: `datasets` takes names for patterns, and misses "a[1].txt"."""
    with open_bytes(path) as stream:
        if unpacked and isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            with open(link, "wb") as file:
                shutil.copyfileobj(stream, file)
        else:
            os.symlink(path.resolve(), link)
