"""Text that is no plain text: markup, bibliographies, dumps, JSON in other forms, encoded data.

Each rule needs what prose does not have, at the beginning of a file or in all of its first lines.
"""

import json
import re
from typing import NamedTuple

from bert.corpora.markup import DECLARATION, TAG, find_markup, name_tags
from bert.corpora.text_files import CONVERT, Unread

AS_LINES = "write JSON lines, one object a line"
PASS = "plain text that begins with < passes if a short line and a blank line stand before it"
AS_XML = "download the records as XML, or write JSON lines with the fields title and abstract"


class Form(NamedTuple):
    """A form by how it begins (a pattern), and by a line that must be there too."""

    start: str
    what: str
    advice: str
    line: str = ""
    holds_text: bool = True


FORMS = (
    Form(
        r"(?:PMID|OWN |STAT|DCOM)- |(?=.{4}- )[A-Z]{2,4} *- ",
        "MEDLINE text (NBIB)",
        AS_XML,
        line=r"PMID- *\d",
    ),
    Form(r"1[.:] \S", "PubMed's abstract format", AS_XML, line=r"PMID: \d+"),
    Form(r"1: \S", "PubMed's summary format", AS_XML, line=r".*\bPMID: \d+[.;]"),
    Form(r"TY  ?- ?[A-Z]+\s*$", "an RIS bibliography", AS_XML),
    Form(r"%0 [A-Z]", "an EndNote bibliography", AS_XML, line="%T "),
    Form(r"@[A-Za-z]+\s*[{(]\s*[^,\s]+\s*,", "a BibTeX bibliography", AS_LINES),
    Form(r"\d+\|t\|", "PubTator text", AS_XML),
    Form(r"WARC/\d", "a WARC archive (Common Crawl)", "extract its texts to JSON lines"),
    Form(
        r"-- (?:MySQL|MariaDB|PostgreSQL|phpMyAdmin|SQLite)|/\*M?!\d|PRAGMA foreign_keys",
        "an SQL dump",
        "give the texts themselves, for example Wikipedia's articles as wikiextractor writes them",
    ),
    Form(
        r"version https://git-lfs\.github\.com/spec/|(?:\.git)?/annex/objects/",
        "a pointer of Git LFS or git-annex in the place of the data",
        "fetch the data, for example with git lfs pull",
    ),
    Form(r"From \S+ +\w{3} \w{3} [ \d]\d \d\d:\d\d", "a mailbox (mbox)", CONVERT),
    Form(r"-DOCSTART-", "a file of words with tags (CoNLL)", "join the words to plain text"),
    Form(r"# (?:sent_id|newdoc|newpar|global\.columns|text)", "CoNLL-U", CONVERT, line=r"1\t"),
    Form(r"1\n\d\d:\d\d:\d\d[,.]\d{3} --> |WEBVTT", "a file of subtitles with times", CONVERT),
    Form(r">[^\n]+\n[A-Z*-]{50,}$", "sequences (FASTA)", "leave it out", holds_text=False),
    Form(r"-----BEGIN [A-Z ]+-----", "encoded data (PEM)", "decode it"),
)
COMPILED = tuple(
    (
        re.compile(form.start, re.M | re.S),
        re.compile(f"^{form.line}", re.M),
        Unread(form.what, form.advice, form.holds_text),
    )
    for form in FORMS
)
# The start of an array of objects, of arrays with text, or of Python's strings.
ARRAY_START = re.compile(r"""\[\s*(?:\{\s*["'}]|\[\s*"|'(?:[^'\\\n]|\\.)*'\s*[,\]])""")
TAGGED_WORD = re.compile(r"\S+(?:[ \t]\S+){0,3}[ \t](?:O|[BIESLU]-\S+)")
CHECKSUM = re.compile(
    r"(?:MD5|SHA\d+) ?\(.+\) ?= ?[0-9a-fA-F]{32,128}|\\?[0-9a-fA-F]{32,128}(?:[ *]+\S.*)?"
)
ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{40,}(?:\n[A-Za-z0-9+/=_-]+)*\n?")
ENCODED_CHARACTERS = 1000
MIN_LINES = 5


def find_foreign_text(text: str, *, at_end: bool) -> Unread | None:
    """What `text` is if it is surely no plain text.

    Args:
        text: the start of a file, without white space before it, its lines ended by LF.
        at_end: whether it is the whole file; else its last line may be cut.
    """
    for start, line, found in COMPILED:
        if start.match(text) and line.search(text):
            return found
    if TAG.match(text):
        named = name_tags(text)
        if DECLARATION.match(text) or not named.advice.startswith(CONVERT):
            return named
        return named._replace(advice=f"{named.advice}; {PASS}")
    lines = [line for line in text.split("\n") if line.strip()]
    if not at_end and len(lines) > 1:
        del lines[-1]
    return find_markup(text) or _find_json(text, lines) or _find_no_language(text, lines)


def _find_json(text: str, lines: list[str]) -> Unread | None:
    """JSON in a form other than one object a line."""
    if text.startswith("[") and _is_array(text):
        return Unread("a JSON array", f"{AS_LINES}, for example with jq -c")
    values = [_parse(line) for line in lines]
    if all(isinstance(value, str) for value in values) and any("\\" in line for line in lines):
        return Unread("JSON strings, one a line", 'write JSON objects: {"text": "..."}')
    if len(values) > 2 and all(isinstance(value, dict) for value in values[1:]):
        return Unread("JSON lines after a first line that is no JSON", "remove its first line")
    return None


def _is_array(text: str) -> bool:
    """Whether an array of JSON or of Python begins here. "[1]" and "[Note: ...]" are prose."""
    if ARRAY_START.match(text):
        return True
    inside = text[1:].lstrip()
    try:
        first, end = json.JSONDecoder().raw_decode(inside)
    except (ValueError, RecursionError):
        # Or a string longer than `text`: JSON writes the line breaks in it as escapes.
        return inside.startswith('"') and "\n" not in inside and "\\" in inside
    after = inside[end:].lstrip()[:1]
    if isinstance(first, int | float):
        return after == "," and (text[1] == "\n" or _parse(text.split("\n")[0]) is not None)
    return after in (",", "]")


def _parse(line: str) -> object:
    if line[:1] not in '"{[':
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _find_no_language(text: str, lines: list[str]) -> Unread | None:
    if all(CHECKSUM.fullmatch(line) for line in lines):
        how = "name the data files only, or their folder, where prepare passes over it"
        return Unread("a list of checksums", how, holds_text=False)
    if len(lines) >= MIN_LINES and all(line.strip().isdigit() for line in lines):
        return Unread("a list of numbers", "give the texts that they stand for", holds_text=False)
    if len(lines) >= MIN_LINES and all(TAGGED_WORD.fullmatch(line) for line in lines):
        return Unread("a file of words with tags (CoNLL)", "join the words to plain text")
    start = text[:ENCODED_CHARACTERS]
    if len(start) == ENCODED_CHARACTERS and ENCODED.fullmatch(start):
        return Unread("encoded data (base64)", "decode it")
    return None
