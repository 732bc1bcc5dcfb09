"""What is plain text and what is not: files of the forms that people have, and prose like them."""

import base64
import bz2
import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from bert.corpora.formats import HEAD_BYTES, detect_format
from distributed.errors import BadInput
from tests.unit.bert.corpora.reading import read_documents

SAMPLES = Path(__file__).parents[4] / "samples"
ONE = "The house by the river was built long ago, and the people, who had waited, were glad."
TWO = 'Music was played in the hall; "a fine thing", said the mayor, and nobody disagreed.'
PROSE = f"{ONE}\n{TWO}\n\n{TWO}\n{ONE}\n"
DOC = f'<doc id="7" url="https://x.example/wiki?curid=7" title="River">\nRiver\n\n{PROSE}</doc>'
MEDLINE = f"\nPMID- 100\nOWN - NLM\nTI  - A title\nAB  - {ONE}\n\nPMID- 101\nOWN - NLM\n"


def table(rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    made = io.StringIO()
    csv.writer(made, delimiter=delimiter).writerows(rows)
    return made.getvalue()


def tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.add(SAMPLES / "README.md")
    return made.getvalue()


# What a file holds, and a part of the sentence that refuses it.
REFUSED = {
    # Markup.
    "doc": (DOC, "wikiextractor's <doc> form.*--json"),
    "doc after a BOM": (f"\ufeff\n{DOC}", "wikiextractor's <doc> form"),
    "doc after more blanks than a head": (" \n" * HEAD_BYTES + DOC, "wikiextractor's <doc> form"),
    "dump": ('<mediawiki xmlns="x">\n<page/></mediawiki>', "a MediaWiki dump.*--json"),
    "dump with a declaration": ('<?xml version="1.0"?><mediawiki/>', "a MediaWiki dump"),
    "abstracts of Wikipedia": (
        "<feed>\n<doc>\n<title>W</title></doc></feed>",
        "begins with <feed>",
    ),
    "HTML": (f"<!DOCTYPE html>\n<html><p>{ONE}", "is HTML"),
    "HTML fragment": (f"<p>{ONE}</p>", "is HTML.*a short line and a blank line"),
    "HTML after a comment": (f"<!-- saved -->\n<HTML>{ONE}", "is HTML"),
    "HTML after many comments": ("<!-- a -->\n" * 99 + f"<html>{ONE}", "is HTML"),
    "TEI": ('<?xml version="1.0"?><TEI xmlns="x"/>', "XML with the root <TEI>"),
    "JATS": ('<?xml version="1.0"?><!DOCTYPE article PUBLIC "x" "y"><article/>', "root <article>"),
    "TREC": (f"<DOC>\n<DOCNO>1</DOCNO>{ONE}</DOC>", "TREC"),
    "a citation without its root": ("<PubmedArticle/>", "PubMed XML without its root"),
    "DTD": ("<!-- PubMed -->\n<!ELEMENT a (b)>", "a DTD"),
    "XML cut in its prolog": ('<?xml version="1.0"?>\n', "XML without an element"),
    "N-Triples": ('<http://dbpedia.org/A> <http://b> "c"@en .', "begins with <http:>"),
    "marks of GPT": (f"<|endoftext|>{PROSE}", "endoftext.*blank line in the place"),
    "template": ("{{Infobox\n|a=b}}\n'''A''' is [[b]].", "wikitext"),
    "wikitext": ("'''A''' is a [[b]], [[c]], [[d|e]], [[f]] and [[g]].", "wikitext"),
    "redirect": ("#REDIRECT [[River]]", "wikitext"),
    "LaTeX": (f"% comment\n\\documentclass{{article}}\n{ONE}", "LaTeX"),
    # Bibliographies, dumps, pointers.
    "MEDLINE": (MEDLINE, "MEDLINE text.*as XML"),
    "MEDLINE with CR LF": (MEDLINE.replace("\n", "\r\n"), "MEDLINE text"),
    "MEDLINE of an export": (f"TI  - A\nAB  - {ONE}\nPMID- 7\n", "MEDLINE text"),
    "summaries": (f"1: Foo J. {ONE} J Bar. 2020. PMID: 7.\n\n2: Baz K.\n", "summary format"),
    "mailbox": ("From a@x.example Thu Nov 27 10:00:00 2025\nSubject: a\n", "mbox"),
    "RIS": ("TY  - JOUR\nTI  - A\nER  - \n", "RIS"),
    "EndNote": ("%0 Journal Article\n%T A\n", "EndNote"),
    "BibTeX": ("@article{smith2020,\n title={A}}\n", "BibTeX"),
    "abstract format": (
        f"\n1. J Foo. 2020 Jan 1;3:1-2.\n\nA title.\n\nSmith J(1).\n\n{ONE}\n\nPMID: 123\n",
        "PubMed's abstract format",
    ),
    "PubTator": (f"123|t|A title\n123|a|{ONE}\n", "PubTator"),
    "PMIDs": ("20000\n20001\n20002\n20003\n20004\n", "a list of numbers"),
    "checksum": (f"MD5(pubmed24n0001.xml.gz)= {'0a' * 16}\n", "a list of checksums"),
    "checksums": (f"{'0a' * 32}  a.txt\n{'0b' * 32}  b.txt\n", "a list of checksums"),
    "Git LFS": ("version https://git-lfs.github.com/spec/v1\noid sha256:0a\n", "git lfs pull"),
    "SQL": ("-- MySQL dump 10.19\n--\nINSERT INTO `page` VALUES (1);\n", "an SQL dump"),
    "WARC": (f"WARC/1.0\r\nWARC-Type: conversion\r\n\r\n{PROSE}", "WARC"),
    "CoNLL": ("-DOCSTART- -X- O\n\nEU NNP B-ORG\n", "words with tags"),
    "words and tags": ("EU\tB-ORG\nrejects\tO\na\tO\n\nb\tO\n.\tO\n", "words with tags"),
    "CoNLL-U": ("# sent_id = 1\n1\ta\tb\n", "CoNLL-U"),
    "subtitles": ("1\n00:00:01,000 --> 00:00:02,000\nHi\n", "subtitles"),
    "FASTA": (f">NM_1\n{'ACGT' * 15}\n", "FASTA"),
    "base64": (base64.encodebytes(PROSE.encode() * 9).decode(), "base64"),
    # JSON that is not one object a line.
    "array": (json.dumps([{"text": ONE}]), "a JSON array"),
    "array, indented": (json.dumps([{"text": ONE}], indent=1), "a JSON array"),
    "array of strings": (json.dumps([ONE, TWO], indent=1), "a JSON array"),
    "array of one long string": (json.dumps(["a b c\n" * HEAD_BYTES]), "a JSON array"),
    "array of ids": (json.dumps([101, 7, 102], indent=1), "a JSON array"),
    "a list a line": (f"{json.dumps([1, ONE])}\n{json.dumps([2, TWO])}\n", "a JSON array"),
    "Python's list": (str([ONE, ONE]), "a JSON array"),
    "Python's dictionaries": (str([{"text": ONE}]), "a JSON array"),
    "a string a line": (f"{json.dumps(PROSE)}\n{json.dumps(TWO)}\n", "JSON strings"),
    "a title above": (
        f"# data\n{json.dumps({'text': ONE})}\n{json.dumps({'a': 1})}\n",
        "first line",
    ),
    "object, indented": (json.dumps({"text": ONE}, indent=1), "takes several lines"),
    # Tables.
    "CSV": (table([["id", "text"], ["1", ONE]]), r"comma-separated table \(CSV\)"),
    "CSV, long cells": (table([["id", "text"], ["1", "word " * HEAD_BYTES]]), r"\(CSV\)"),
    "CSV of pandas": (
        table([["", "review", "sentiment"], ["0", ONE, "1"], ["1", TWO, "0"]]),
        "CSV",
    ),
    "CSV, line breaks in cells": (table([["name", "body"], ["a", PROSE], ["b", PROSE]]), "CSV"),
    "CSV without a header": (table([[str(row), ONE, "x"] for row in range(6)]), "CSV"),
    "CSV of one column": (table([["text"], [ONE], [TWO]]), "one column"),
    "CSV with semicolons": (table([["id", "text"], ["1", ONE]], ";"), "semicolon-separated"),
    "CSV with broken rows": ('id,text\n1,a, b and "c"\n2,d\n', "CSV"),
    "CSV of Excel": ("sep=;\nname;body\n", "CSV"),
    "TSV with broken rows": (f"Quality\t#1 ID\tString\n1\t2\t{ONE}\n1\t{TWO}\n", "TSV"),
    "TSV": (f"title\ttext\nRiver\t{ONE}\nHall\t{TWO}\n", r"tab-separated table \(TSV\)"),
    "TSV without a header": ("".join(f"{row}\t{ONE}\n" for row in range(4)), "TSV"),
    "TSV with a stray quote": ('0\t"a\n1\tb\n2\tc\n', "TSV"),
    "titles of Wikipedia": ("page_namespace\tpage_title\n0\tA\n0\tB\n", "TSV"),
    "Markdown's table": ("| a | b |\n|---|---|\n| 1 | 2 |\n", "bar-separated"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("source", ["text", "wikipedia", "books", "pubmed"])
def test_what_is_no_plain_text_is_refused_by_name(source: str, name: str, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    path = tmp_path / "input"
    for data in (content.encode(), gzip.compress(content.encode())):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=said) as caught:
            list(read_documents(source, [path]))  # type: ignore[arg-type]
        message = str(caught.value)
        assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message


PLAIN = {
    "a picture": f"[Illustration: a house]\n{PROSE}",
    "a quotation": f'"Well, Prince,"\n{PROSE}',
    "a quoted line": f'"Hello."\n{PROSE}',
    "a citation": f"[1]\n{PROSE}",
    "a gloss": f'["The Raven" was published in 1845.]\n{PROSE}',
    "a heart": f"<3 is a heart.\n{PROSE}",
    "marked words": "<< EGFR >> inhibitors include [[ gefitinib ]] and << Iressa >>.",
    "less than": f"If a < b then <b>bold</b> is not markup.\n{PROSE}",
    "indented lines": f"\t{ONE}\n\t{TWO}\n\t{ONE}\n\t{TWO}\n",
    "a numbered list": "".join(f"{number}.\t{ONE}\n" for number in range(1, 9)),
    "a lettered list": "".join(f"({letter})\t{TWO}\n" for letter in "abcdefg"),
    "a play": "ROMEO:\tShe speaks.\nJULIET:\tO Romeo!\nROMEO:\tShall I hear more?\n",
    "one comma a line": "Tyger, burning bright\nIn the forests, of the night\n" * 5,
    "a comma at each end": "apples,\npears,\nplums,\nfigs,\nnuts,\n",
    "thousands": "".join(f"There were {n},{n}00 men.\n" for n in range(1, 9)),
    "contents": f"Chapter 1\t5\nChapter 2\t9\n\n{PROSE}",
    "Markdown": "# Title\n\nSome *text* with [a link](http://x).\n\n- a, b\n- c\n",
    "objects in a book": f'He wrote\n{{"a": 1}}\nand\n{{"b": 2}}\nand more.\n{PROSE}',
    "a letter": f"From: a\nSubject: b\n\n{PROSE}",
    "two links": f"See [[a]] and [[b]].\n{PROSE}",
    "references": f"1. Foo J, 2020.\n2. Bar K, PMID: 1234.\n{PROSE}",
    "a name": f"@user, how are you?\n{PROSE}",
    "Python at work": f">>> print(1)\n{PROSE}",
    "a word a line": "\n".join(f"word{number}" for number in range(50)),
    "a number first": f"12\n{PROSE}",
    "words of magic": f"ORCHIDS, PARENTS and PK, GIF8 or 070701.\n{PROSE}",
    "a NUL far below": f"{PROSE * 30}a\0b\n",
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_prose_is_plain_text_whatever_it_begins_with(name: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text(mark + PLAIN[name], encoding="utf-8")
    assert detect_format(path) == "text"
    wanted = "\n".join(line for line in PLAIN[name].split("\n") if line.strip())
    assert [document.text for document in read_documents("books", [path])] == [wanted]


def test_every_real_document_is_plain_text_alone_and_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "input"
    texts = []
    for name in ("wikipedia", "books"):
        with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    texts += [document.text for document in read_documents("pubmed", [SAMPLES / "pubmed.xml.gz"])]
    assert len(texts) == 160 + 526
    for text in texts:
        for content in (text, text.replace(". ", ".\n"), text.split("\n")[-1]):
            path.write_text(content, encoding="utf-8")
            assert detect_format(path) in ("text", "empty"), content[:200]


def test_forms_within_a_plain_text_are_found_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "input"
    for content, said in (
        (f"{PROSE * 2000}{DOC}\n", "line 10001.*wikiextractor"),
        (f"INFO: started\n{DOC}\n", "line 2.*wikiextractor"),
        (f"{PROSE}<|endoftext|>\n{PROSE}", "line 6.*endoftext"),
        (f"{PROSE * 9}{chr(0) * 4000}\n{PROSE}", "line 46 holds NUL bytes.*damaged"),
    ):
        path.write_text(content)
        with pytest.raises(BadInput, match=said):
            list(read_documents("text", [path]))


def test_only_what_may_be_prose_is_told_how_it_passes(tmp_path: Path) -> None:
    path = tmp_path / "input"
    passes = "a short line and a blank line stand before it"
    for content, is_told in ((DOC, False), ("<mediawiki/>", False), ("<ann> hello", True)):
        path.write_text(content)
        with pytest.raises(BadInput) as caught:
            detect_format(path)
        assert (passes in str(caught.value)) == is_told
    # What the sentence advises.
    path.write_text(f"Chat\n\n<ann> hello, {ONE}\n")
    documents = [document.text for document in read_documents("text", [path])]
    assert documents == ["Chat", f"<ann> hello, {ONE}"]


def test_a_container_within_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt.gz"
    for inside, said in (
        (tar(), "a tar archive .* inside gzip"),
        (bz2.compress(PROSE.encode()), "a bzip2 file .* inside gzip"),
        (gzip.compress(PROSE.encode()), "gzip data inside gzip"),
        (PROSE.encode("utf-16"), "UTF-16LE text inside gzip.*iconv -f UTF-16LE"),
    ):
        path.write_bytes(gzip.compress(inside))
        with pytest.raises(BadInput, match=said):
            detect_format(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_bytes_of_another_encoding_are_named_by_line(
    tmp_path: Path, line_end: bytes, packed: bool
) -> None:
    path = tmp_path / "input"
    number = random.Random(0).randrange(20_000, 30_000)
    before = {"text": ONE.encode(), "json": json.dumps({"text": ONE}).encode()}
    bad = {"text": b"na\xefve", "json": b'{"text": "na\xefve"}'}
    for kind in before:
        lines = [*[before[kind]] * (number - 1), bad[kind], before[kind]]
        data = line_end.join(lines)
        path.write_bytes(gzip.compress(data, 1) if packed else data)
        said = f"line {number} is not UTF-8 text .byte 0xEF.: convert .* iconv -f WINDOWS-1252"
        with pytest.raises(BadInput, match=said):
            list(read_documents("text", [path]))
