"""PubMed / MEDLINE XML as NLM distributes it: streamed, without entities, without the network.

Both roots are read (`MedlineCitationSet` up to 2016, `PubmedArticleSet` since), gzip or not. A
document is the title and the abstract, labelled sections as "LABEL: text", inline markup flattened.

Updates. NLM publishes a yearly baseline and daily update files; a later file replaces a citation or
deletes it. Files are read newest first, that is in the reverse of the order given (NLM's names sort
by age), and a citation already seen is skipped: so one bit a PMID is remembered (5 MB for all of
PubMed). Within one file the highest version wins, then the last one, and a deletion beats both;
for that a file's texts wait in a temporary file (in memory up to 64 MB) and its PMIDs in memory.
"""

import contextlib
import gzip
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from distributed.errors import BadInput

ROOTS = ("MedlineCitationSet", "PubmedArticleSet")
# A citation's element, and where in it the title and the abstract are.
CITATIONS = {"MedlineCitation": "Article/", "BookDocument": ""}
SPOOL_BYTES = 64 << 20
# PMIDs have 8 digits today; the bound keeps a damaged one from growing the bitmap to gigabytes.
MAX_PMID = 999_999_999
# Labels by which NLM marks that there is none.
NO_LABELS = {"", "UNLABELLED", "UNLABELED", "UNASSIGNED"}


class Citation(NamedTuple):
    pmid: int
    version: int
    text: str  # empty: no abstract


class Deletion(NamedTuple):
    pmid: int


class _Spooled(NamedTuple):
    version: int
    offset: int
    size_bytes: int


def read_pubmed(paths: Sequence[Path], *, dropped: Counter[str]) -> Iterator[tuple[Path, str]]:
    """The current text of each citation with an abstract, with the file it came from.

    `paths` are in order of age, oldest first. Adds to `dropped`: `without_abstract`, `deleted`,
    `replaced_by_later_version`.

    Raises:
        BadInput: a file cannot be read, is not well-formed, declares entities or has another root.
    """
    seen = _PmidSet()
    for path in reversed(paths):
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            current, deleted = _spool_file(path, spool=spool, dropped=dropped)
            for pmid, entry in current.items():
                if pmid in seen:
                    dropped["replaced_by_later_version"] += 1
                elif entry.size_bytes == 0:
                    dropped["without_abstract"] += 1
                else:
                    spool.seek(entry.offset)
                    yield path, spool.read(entry.size_bytes).decode("utf-8")
                seen.add(pmid)
        for pmid in deleted:
            seen.add(pmid)


def _spool_file(
    path: Path, *, spool: IO[bytes], dropped: Counter[str]
) -> tuple[dict[int, _Spooled], set[int]]:
    current: dict[int, _Spooled] = {}
    deleted: set[int] = set()
    offset = 0
    for item in read_citations(path):
        if isinstance(item, Deletion):
            deleted.add(item.pmid)
            continue
        earlier = current.get(item.pmid)
        if earlier is not None:
            dropped["replaced_by_later_version"] += 1
            if earlier.version > item.version:
                continue
        data = item.text.encode("utf-8")
        spool.write(data)
        current[item.pmid] = _Spooled(item.version, offset, len(data))
        offset += len(data)
    for pmid in deleted & current.keys():
        del current[pmid]
        dropped["deleted"] += 1
    return current, deleted


def read_citations(path: Path) -> Iterator[Citation | Deletion]:
    """Every citation and deletion of one file, in order, in constant memory."""
    try:
        with open_bytes(path) as stream:
            yield from _parse(stream, path=path)
    except ParseError as error:
        line, column = error.position
        raise BadInput(
            f"{path} is not well-formed XML at line {line}, column {column + 1} "
            f"({str(error).split(':')[0]}): download it again."
        ) from None
    except DefusedXmlException:
        raise BadInput(
            f"{path} declares XML entities, which are refused: "
            "PubMed's own files have none, so download it again from NLM."
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read ({error}): download it again.") from None


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed if they are gzip."""
    with open(path, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_gzip:
            with gzip.open(raw) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield raw


def _parse(stream: IO[bytes], *, path: Path) -> Iterator[Citation | Deletion]:
    # The DOCTYPE is allowed and never fetched.
    events = iterparse(stream, events=("start", "end"), forbid_entities=True, forbid_external=True)
    _, root = next(events)
    if root.tag not in ROOTS:
        raise BadInput(
            f"{path} has the XML root {root.tag!r}: give PubMed XML with the root "
            f"{' or '.join(ROOTS)}."
        )
    for event, element in events:
        if event == "start":
            continue
        if element.tag in CITATIONS:
            yield _citation(element, path=path)
            # Drops the finished children of the root; the one still open is kept by the parser.
            root.clear()
        elif element.tag == "DeleteCitation":
            for pmid in element.iter("PMID"):
                yield Deletion(_pmid(pmid, path=path))


def _citation(element: Element, *, path: Path) -> Citation:
    pmid_element = element.find("PMID")
    pmid = _pmid(pmid_element, path=path)
    version_text = "" if pmid_element is None else pmid_element.get("Version", "")
    version = int(version_text) if version_text.isdigit() else 1
    inside = CITATIONS[element.tag]
    sections = []
    for section in element.iterfind(f"{inside}Abstract/AbstractText"):
        text = _flat_text(section)
        label = section.get("Label", "").strip()
        if text:
            sections.append(text if label.upper() in NO_LABELS else f"{label}: {text}")
    if not sections:
        return Citation(pmid, version, "")
    title = element.find(f"{inside}ArticleTitle")
    parts = sections if title is None else [_flat_text(title), *sections]
    return Citation(pmid, version, "\n".join(part for part in parts if part))


def _flat_text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _pmid(element: Element | None, *, path: Path) -> int:
    text = "" if element is None else (element.text or "").strip()
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_PMID):
        raise BadInput(f"{path} has a citation with the PMID {text!r}: download it again.")
    return int(text)


class _PmidSet:
    """A set of PMIDs, one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def __contains__(self, pmid: int) -> bool:
        byte = pmid >> 3
        return byte < len(self._bits) and bool(self._bits[byte] >> (pmid & 7) & 1)

    def add(self, pmid: int) -> None:
        byte = pmid >> 3
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._bits[byte] |= 1 << (pmid & 7)
