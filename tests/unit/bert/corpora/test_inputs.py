"""Which files of a folder are read, and what becomes of the others."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from bert.corpora.inputs import list_inputs
from distributed.errors import BadInput
from tests.unit.bert.corpora.reading import read_documents
from tests.unit.bert.corpora.test_pubmed import citation, text, write

PAGE = "<!DOCTYPE html>\n<html><body><table><tr><td>30,000</td></tr></table></body></html>\n"
ABOUT = "The files here are the annual baseline of MEDLINE, which NLM updates daily.\n" * 9
CUT = gzip.compress(ABOUT.encode(), mtime=0)[:40]


@pytest.fixture
def nlm(tmp_path: Path) -> Path:
    """Two files of a baseline and one of the updates, as NLM's server has them."""
    folder = tmp_path / "pubmed"
    for number, below in ((1, "baseline"), (2, "baseline"), (3, "updatefiles")):
        name = f"pubmed25n{number:04}.xml"
        (folder / below).mkdir(parents=True, exist_ok=True)
        path = write(tmp_path / name, citation(number, text(f"abstract {number}")))
        packed = gzip.compress(path.read_bytes())
        (folder / below / f"{name}.gz").write_bytes(packed)
        digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        (folder / below / f"{name}.gz.md5").write_text(f"MD5({name}.gz)= {digest}\n")
    (folder / "baseline" / "README.txt").write_text(ABOUT)
    (folder / "updatefiles" / "README.txt").write_text(ABOUT)
    (folder / "updatefiles" / "pubmed25n0003_stats.html").write_text(PAGE)
    return folder


def test_the_folder_of_nlm_as_delivered(nlm: Path) -> None:
    found = list_inputs("pubmed", [nlm])
    names = ["baseline/pubmed25n0001", "baseline/pubmed25n0002", "updatefiles/pubmed25n0003"]
    assert [item.name for item in found.read] == [str(nlm / f"{name}.xml.gz") for name in names]
    assert [(item.name.removeprefix(f"{nlm}/"), item.reason) for item in found.passed_over] == [
        ("baseline/README.txt", "README or licence"),
        ("baseline/pubmed25n0001.xml.gz.md5", "checksum"),
        ("baseline/pubmed25n0002.xml.gz.md5", "checksum"),
        ("updatefiles/README.txt", "README or licence"),
        ("updatefiles/pubmed25n0003.xml.gz.md5", "checksum"),
        ("updatefiles/pubmed25n0003_stats.html", "HTML"),
    ]
    texts = sorted(document.text for document in read_documents("pubmed", [nlm]))
    assert texts == [f"A title.\nabstract {number}" for number in (1, 2, 3)]


def test_texts_beside_pubmed_xml_are_not_abstracts(nlm: Path) -> None:
    (nlm / "J_Medline.txt").write_text("JrId: 1\nJournalTitle: AADE editors' journal\n" * 9)
    (nlm / "deleted.pmids.gz").write_bytes(gzip.compress(b"100\n101\n102\n103\n104\n"))
    (nlm / "pubmed.dtd").write_text("<!-- PubMed -->\n<!ELEMENT PubmedArticleSet (PubmedArticle)*>")
    reasons = {Path(i.name).name: i.reason for i in list_inputs("pubmed", [nlm]).passed_over}
    assert reasons["J_Medline.txt"] == "plain text beside PubMed XML"
    assert reasons["deleted.pmids.gz"] == "a list of numbers inside gzip"
    assert reasons["pubmed.dtd"] == "a DTD"
    # A file that is named is read: who names it wants it.
    named = [nlm, nlm / "J_Medline.txt"]
    assert list_inputs("pubmed", named).read[-1].format == "text"
    with pytest.raises(BadInput, match=r"stats\.html is HTML"):
        list_inputs("pubmed", [nlm / "updatefiles" / "pubmed25n0003_stats.html"])
    with pytest.raises(BadInput, match=r"md5 is a list of checksums.*or their folder"):
        list_inputs("pubmed", [nlm / "baseline" / "pubmed25n0001.xml.gz.md5"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pubmed25n0004.xml.zip", b"PK\x03\x04 ...", "a zip archive"),
        ("more.nbib", b"PMID- 100\nTI  - A title\n", "MEDLINE text"),
        ("pubmed25n0004.xml.gz", CUT, "damaged or incomplete"),
        ("PMC1.xml", b"<?xml version='1.0'?><article/>", "XML with the root <article>"),
    ],
)
def test_what_may_be_data_is_never_passed_over(
    nlm: Path, name: str, content: bytes, said: str
) -> None:
    (nlm / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name} is {said}"):
        list_inputs("pubmed", [nlm])


@pytest.mark.parametrize("source", ["text", "wikipedia", "books", "pubmed"])
def test_any_folder_is_read_without_what_lies_beside_the_data(source: str, tmp_path: Path) -> None:
    record = json.dumps({"title": "T", "text": "words", "abstract": "words"})
    (tmp_path / "a.jsonl").write_text(record)
    (tmp_path / "b.txt").write_text("plain words")
    beside = ["LICENSE", "README.md", "SHA256SUMS", "a.jsonl.sha256", "dataset_infos.json"]
    for name in beside:
        (tmp_path / name).write_text(ABOUT)
    for paths in ([tmp_path], [str(tmp_path / "*")]):
        found = list_inputs(source, paths)  # type: ignore[arg-type]
        assert [Path(item.name).name for item in found.read] == ["a.jsonl", "b.txt"]
        assert sorted(Path(item.name).name for item in found.passed_over) == beside
    only = [item for item in found.read if item.format == "text"]
    assert [Path(item.name).name for item in only] == ["b.txt"]


def test_a_link_to_nothing_is_no_file_that_may_be_missed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert len(list_inputs("text", [tmp_path]).read) == 2
    (tmp_path / "c.txt").symlink_to(tmp_path / "annexed")
    for path in (tmp_path, str(tmp_path / "*.txt")):
        with pytest.raises(BadInput, match=r"c\.txt is a link to a file that is not there"):
            list_inputs("text", [path])


def test_a_folder_with_nothing_but_notes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(ABOUT)
    with pytest.raises(BadInput, match=r"no input file at .* but README\.md, which hold"):
        list_inputs("text", [tmp_path])


def test_a_wrong_file_is_told_before_any_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("hashed")

    monkeypatch.setattr("hashlib.file_digest", fail)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").write_text(PAGE)
    with pytest.raises(BadInput, match=r"b\.txt is HTML"):
        list_inputs("text", [tmp_path / "a.txt", tmp_path / "b.txt"])
