"""PubMed / MEDLINE XML as NLM distributes it: streamed, without entities, without the network.

Both roots are read (`MedlineCitationSet` up to 2016, `PubmedArticleSet` since), gzip or not. A
document is the title and the abstract, labelled sections as "LABEL: text", inline markup flattened.

Updates. NLM publishes a yearly baseline and daily update files; a later file replaces a citation or
deletes it. Files are read newest first, that is in the reverse of the order given (NLM's names sort
by age), and a citation already seen is skipped: so one bit a PMID is remembered (5 MB for all of
PubMed). Within one file the highest version wins, then the last one, and a deletion beats both;
for that a file's texts wait in a temporary file (in memory up to 64 MB) and its PMIDs in memory.
"""

import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple
from xml.etree.ElementTree import Element, ParseError
from xml.parsers.expat import errors as expat

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from bert.corpora.text_files import find_not_utf8, open_bytes, unreadable
from distributed.errors import BadInput, first_line

ROOTS = ("MedlineCitationSet", "PubmedArticleSet")
# A citation's element, and where in it the title and the abstract are.
CITATIONS = {"MedlineCitation": "Article/", "BookDocument": ""}
SPOOL_BYTES = 64 << 20
# PMIDs have 8 digits today; the bound keeps a damaged one from growing the bitmap to gigabytes.
MAX_PMID = 999_999_999
# Labels by which NLM marks that there is none.
NO_LABELS = {"", "UNLABELLED", "UNLABELED", "UNASSIGNED"}
OTHER_ENCODING = re.compile(rb"<\?xml[^>]*encoding\s*=\s*.(?!utf-?8|us-ascii)", re.I)
# What expat says of a document that stops in the middle.
INCOMPLETE = {
    expat.codes[message]
    for message in (
        expat.XML_ERROR_NO_ELEMENTS,
        expat.XML_ERROR_UNCLOSED_TOKEN,
        expat.XML_ERROR_PARTIAL_CHAR,
        expat.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
}


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
        raise _not_well_formed(path, error) from None
    except DefusedXmlException:
        raise BadInput(
            f"{path} declares XML entities, which are refused: "
            "PubMed's own files have none, so download it again from NLM."
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise unreadable(path, error) from None
    except (LookupError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path} declares an encoding that is not read ({first_line(error)}): convert it to "
            "UTF-8."
        ) from None


def _not_well_formed(path: Path, error: ParseError) -> BadInput:
    """The true reason of an error of expat, which tells what it expected and not what is there."""
    line, column = error.position
    reason, advice = str(error).split(f": line {line}")[0], "download it again"
    if error.code in INCOMPLETE:
        reason, advice = "it ends before its last element does", "it is incomplete, fetch it again"
    elif error.code == expat.codes[expat.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]:
        if _bytes_at(path, line, column).startswith(b"<"):
            reason = "another XML document begins here: several files were joined"
            advice = "give them as separate files"
        else:
            reason, advice = "something follows the end of the document", "remove it"
    elif error.code == expat.codes[expat.XML_ERROR_MISPLACED_XML_PI]:
        reason, advice = "something stands before the XML declaration", "remove it"
    elif error.code == expat.codes[expat.XML_ERROR_UNDEFINED_ENTITY]:
        advice = "write the character itself, or download it again"
    elif error.code == expat.codes[expat.XML_ERROR_INVALID_TOKEN]:
        if _bytes_at(path, line, column).startswith(b"\0"):
            reason, advice = "it holds NUL bytes", "it is damaged, fetch it again"
        with open_bytes(path) as stream:
            bad = find_not_utf8(stream)
        # The bytes of another encoding, if the document declares it, are no error.
        if bad is not None and bad.line == line and not OTHER_ENCODING.match(_bytes_at(path, 1, 0)):
            return bad.error(path)
    return BadInput(
        f"{path} is not well-formed XML at line {line}, column {column + 1} ({reason}): {advice}."
    )


def _bytes_at(path: Path, line: int, column: int) -> bytes:
    """The rest of a line from a column on, which counts from 0."""
    with open_bytes(path) as stream:
        return next(islice(stream, line - 1, None), b"")[column:]


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
