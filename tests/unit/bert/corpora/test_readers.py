import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert.corpora import readers
from bert.corpora.formats import detect_format
from bert.corpora.inputs import list_inputs
from bert.corpora.manifest import Source
from bert.corpora.readers import read_inputs
from distributed.errors import BadInput
from tests.unit.bert.corpora.reading import read_documents

SAMPLES = Path(__file__).parents[4] / "samples"


def texts(source: Source, *paths: Path | str) -> list[str]:
    return [document.text for document in read_documents(source, paths)]


def json_lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_real_samples_are_complete() -> None:
    expected = []
    for name in ("wikipedia", "books"):
        with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            expected += [json.loads(line)["text"] for line in lines]
    got = texts("text", SAMPLES / "wikipedia.jsonl.gz", SAMPLES / "books.jsonl.gz")
    assert got == expected and len(got) == 160


def test_each_source_reads_its_fields(tmp_path: Path) -> None:
    record = {"title": "T", "text": "words", "abstract": "A: b", "pmid": None}
    path = json_lines(tmp_path / "a", [record])
    assert texts("wikipedia", path) == ["T\nwords"]
    assert texts("books", path) == texts("text", path) == ["words"]
    assert texts("pubmed", path) == ["T\nA: b"]


def test_formats_are_found_by_content_and_not_by_name(tmp_path: Path) -> None:
    records = [{"text": "one"}, {"text": "two"}]
    lines = json_lines(tmp_path / "lines.parquet", records)
    table = tmp_path / "table.txt"
    pq.write_table(pa.Table.from_pylist(records), table)
    plain = tmp_path / "plain.json"
    plain.write_text("\ufeffone\r\n \r\n\n two\n")
    for path, kind in ((lines, "json"), (table, "parquet"), (plain, "text")):
        packed = tmp_path / f"packed-{kind}.xml"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        for file in (path, packed):
            assert detect_format(file) == kind
            assert [words.strip() for words in texts("text", file)] == ["one", "two"]
    assert detect_format(SAMPLES / "pubmed.xml.gz") == "xml"


def test_json_values_are_never_guessed(tmp_path: Path) -> None:
    # The JSON loader of `datasets` makes a datetime of the first and a number of a later "pmid".
    path = json_lines(tmp_path / "a", [{"text": "2019-01-01", "x": [1]}, {"text": "b", "x": "y"}])
    assert texts("text", path) == ["2019-01-01", "b"]


def test_plain_text_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\nfirst line\nsecond line\n\n\n \t\nother\u2028document\n")
    assert texts("text", path) == ["first line\nsecond line", "other\u2028document"]
    assert texts("books", path) == ["first line\nsecond line\nother\u2028document"]
    monkeypatch.setattr(readers, "MAX_TEXT_CHARACTERS", 15)
    dropped: Counter[str] = Counter()
    documents = read_inputs("books", list_inputs("books", [path]).read, dropped=dropped)
    assert [d.text for d in documents] == ["first line\nsecond line", "other\u2028document"]
    assert dropped == {"documents_cut_for_length": 1}


def test_folders_and_globs_are_sorted(tmp_path: Path) -> None:
    below = tmp_path / "in"
    for name in ("b/2.txt", "b/10[x].txt", "a.txt", ".hidden", "b/10.md5", ".git/c.txt"):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (below / name).write_text(name + "\n")
    expected = ["a.txt", "b/10[x].txt", "b/2.txt"]
    assert texts("text", below) == expected
    assert texts("text", str(below / "b" / "*.txt")) == expected[1:]
    assert texts("text", below / "b/2.txt", below / "a.txt") == ["b/2.txt", "a.txt"]


def test_records_without_text_and_empty_files_are_counted(tmp_path: Path) -> None:
    records = [
        {"title": "a", "abstract": None},
        {"title": None, "abstract": "b"},
        {"abstract": " "},
    ]
    path = json_lines(tmp_path / "a", records)
    (tmp_path / "b").write_text(" \n\n")
    dropped: Counter[str] = Counter()
    inputs = list_inputs("pubmed", [tmp_path]).read
    documents = list(read_inputs("pubmed", inputs, dropped=dropped))
    assert [(d.text, d.input) for d in documents] == [("b", str(path))]
    assert dropped == {"without_abstract": 2, "empty_files": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n\n{"text": "b"\n', "line 3 is not valid JSON"),
        (b'{"text": "a"}\n{"text": "cut', "line 2 is not valid JSON"),
        (b'{"text": "a"}\n[1]\n', "line 2 is not a JSON object"),
        (b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no field 'text'.*it has body"),
        (b'{"text": 5}\n', "line 1: the field 'text' is a number, not a string"),
        (b'[\n{"text": "a"}]', "is a JSON array"),
        (b"caf\xe9\n", "line 1 is not UTF-8"),
        (b"\x01\0\0", "a binary file of an unknown form"),
        (b"PAR1 nothing", "damaged or incomplete"),
        (b"<?xml version='1.0'?><PubmedArticleSet/>", "is PubMed XML, which --source text"),
        (gzip.compress(b'{"text": "a"}\n' * 9999, mtime=0)[:100], "damaged or incomplete"),
    ],
)
def test_bad_input_is_one_sentence_naming_the_file(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        texts("text", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bit_flip_in_gzip_is_found(tmp_path: Path) -> None:
    data = bytearray((SAMPLES / "books.jsonl.gz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.gz"):
        texts("books", tmp_path / "a.gz")


def test_missing_inputs_and_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path / "*.txt"):
        with pytest.raises(BadInput, match="no input file"):
            texts("text", path)
    with pytest.raises(BadInput, match="no source 'web': choose one of wikipedia, books"):
        list(read_inputs("web", [], dropped=Counter()))  # type: ignore[arg-type]


def test_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="hub:no/such:en cannot be reached.*check its name and the"):
        list_inputs("text", ["hub:no/such:en"])


def test_nothing_is_written_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(texts("books", SAMPLES / "books.jsonl.gz")) == 80
    assert list(tmp_path.iterdir()) == []
