"""What an input file holds, by its content: one of the formats that are read, or an error.

No default takes what nothing recognised. Binary and compressed forms, markup, tables, bibliographic
exports and other containers of text are refused by name, with what to do. Plain text is what is
left, so each rule that refuses needs more than prose ever shows (see foreign_text.py, tables.py).
"""

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import IO, Literal

from bert.corpora.foreign_text import find_foreign_text
from bert.corpora.manifest import Source
from bert.corpora.markup import WIKI_START, find_root
from bert.corpora.pubmed import ROOTS
from bert.corpora.tables import find_table
from bert.corpora.text_files import Unread, find_container, open_bytes, unreadable
from distributed.errors import BadInput

Format = Literal["json", "text", "parquet", "xml", "hub", "empty"]
FIELDS: dict[Source, tuple[str, ...]] = {
    "wikipedia": ("title", "text"),
    "books": ("text",),
    "pubmed": ("title", "abstract"),
    "text": ("text",),
}
HEAD_BYTES = 64 << 10
MIN_CHARACTERS = 4096  # a file that begins with more blanks than a head holds is read on
# White space and characters without width.
BLANKS = re.compile("[\\s\0-\x1f\x7f\u200b-\u200f\u2060\ufeff]+")


def check_source(source: str) -> None:
    if source not in FIELDS:
        raise BadInput(f"There is no source {source!r}: choose one of {', '.join(FIELDS)}.")


def detect_format(path: Path) -> Format:
    """The format of a file, gzip or not.

    Raises:
        BadInput: it cannot be read, or is in a form that is not read.
    """
    found = inspect_file(path)
    if isinstance(found, Unread):
        raise found.error(path)
    return found


def inspect_file(path: Path) -> Format | Unread:
    """The format of a file; if it is not read, what it is instead and what to do.

    Raises:
        BadInput: it cannot be opened, or its gzip data is damaged.
    """
    try:
        with open_bytes(path) as stream:
            is_gzip = isinstance(stream, gzip.GzipFile)
            head = stream.read(HEAD_BYTES)
            found = _inspect_bytes(head)
            if found is None:
                text, at_end = _read_visible(stream, head)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None
    if found is None:
        found = _inspect_text(text, at_end=at_end, name=path.name) if text else "empty"
    if isinstance(found, Unread) and is_gzip:
        return found._replace(what=f"{found.what} inside gzip")
    return found


def _inspect_bytes(head: bytes) -> Format | Unread | None:
    return "parquet" if head.startswith(b"PAR1") else find_container(head)


def _read_visible(stream: IO[bytes], head: bytes) -> tuple[str, bool]:
    """The text from the first visible character on, and whether it is all of the file."""
    at_end = len(head) < HEAD_BYTES
    text = _visible(head)
    while len(text) < MIN_CHARACTERS and not at_end:
        chunk = stream.read(HEAD_BYTES)
        at_end = len(chunk) < HEAD_BYTES
        head = head + chunk if text else chunk
        text = _visible(head)
    return text, at_end


def _visible(head: bytes) -> str:
    """The text of `head` from its first visible character on, with LF as the only line end."""
    text = head.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return text[found.end() :] if (found := BLANKS.match(text)) else text


def _inspect_text(text: str, *, at_end: bool, name: str) -> Format | Unread:
    if text.startswith("<") and find_root(text) in ROOTS:
        return "xml"
    if text.startswith("{") and not WIKI_START.match(text):
        return _find_wrapped_json(text) or "json"
    return (
        find_foreign_text(text, at_end=at_end)
        or find_table(text, at_end=at_end, name=name)
        or "text"
    )


def _find_wrapped_json(text: str) -> Unread | None:
    """One JSON object that takes several lines, which looks like JSON lines at first."""
    first, _, rest = text.partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        if rest.lstrip()[:1] in ('"', "}") and not first.rstrip().endswith("}"):
            how = "write JSON lines, one object on one line, for example with jq -c"
            return Unread("a JSON value that takes several lines", how)
    return None
