"""Files and hub data sets: what cannot be read is one sentence with the file and the line."""

import bz2
import gzip
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from bert.corpora.hub import HubDataSet
from bert.tasks.formats import sources
from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import RELATION, SQUAD, TOKENS, Write, load, texts


def save_hub(folder: Path, names: Sequence[str] | None, **splits: list[dict[str, Any]]) -> None:
    """A data set as datasets itself writes it; `names` are those of its label's classes."""
    for split, rows in splits.items():
        table = datasets.Dataset.from_list(rows)
        if names is not None:
            table = table.cast_column("label", datasets.ClassLabel(names=list(names)))
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in which a hub name is looked for; datasets.load_dataset itself reads it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def look_up(source: str) -> HubDataSet:
        name, _, split = source.removeprefix("hub:").split(":")
        return HubDataSet(str(tmp_path / "hub" / name), None, split, "main")

    monkeypatch.setattr(sources, "find_data_set", look_up)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("name", "text", "fields", "told"),
    [
        ("q.csv", 'sentence,label\n"a,0\nb,1\n', {}, r"q.csv line \d is not CSV"),
        (
            "r.tsv",
            "sentence\tlabel\na\tnan\n",
            {"kind": "regression", "metrics": ["pearson"]},
            "r.tsv line 2 has 'nan' as its score, which is no finite number",
        ),
        ("s.json", '{"data": [7]}', "squad", "article 1 is no object"),
        ("s.json", '{"data": [{"paragraphs": 3}]}', "squad", "paragraphs is no list of objects"),
        (
            "b.json",
            '{"questions": [{"type": "yesno", "body": "Q", "snippets": [], "exact_answer": []}]}',
            {"format": "bioasq"},
            "question 0 has no answer in 'exact_answer'",
        ),
    ],
)
def test_odd_files_are_one_sentence(
    write: Write, name: str, text: str, fields: Any, told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        load(str(write(name, text)), **(SQUAD if fields == "squad" else fields))


def test_a_damaged_gzip_file(write: Write) -> None:
    file = write("z.tsv.gz", "sentence\tlabel\n" + "a\t1\n" * 500)
    data = bytearray(file.read_bytes())
    data[20:30] = b"\xff" * 10
    file.write_bytes(data)
    with pytest.raises(BadInput, match="z.tsv.gz cannot be read"):
        load(str(file))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_bytes(b"sentence\tlabel\nok\t1\nb\xe9\t0\n")
    with pytest.raises(BadInput, match=r"t.tsv line 3 is not UTF-8"):
        load(str(file))
    with pytest.raises(BadInput, match="does not exist"):
        load(str(tmp_path / "none.tsv"))


def test_a_hub_data_set(hub: Path) -> None:
    records = [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}]
    save_hub(hub / "sst2", None, train=records, validation=records[:1])
    data = load("hub:sst2::train", dev="hub:sst2::validation", labels=["0", "1"])
    assert texts(data) == [("a", None, "0"), ("b", None, "1")]
    assert [example.place for example in data.dev.examples] == ["hub:sst2::validation row 0"]
    with pytest.raises(BadInput, match="hub:sst2::test cannot be loaded"):
        load("hub:sst2::test")


@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "t.json", "t.tsv.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_windows_1252_is_named_by_its_line(tmp_path: Path, name: str, mark: bytes) -> None:
    """With a byte order mark too, whose length shifts the decoder's positions."""
    file = tmp_path / name
    data = mark + b"a\tb\n" * 6 + "caf\xe9\t1\n".encode("cp1252")
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(BadInput, match=rf"{name} line 7 is not UTF-8 text \(byte 0xe9\): convert"):
        load(str(file))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (TOKENS, "t.txt"),
        (SQUAD, "s.json"),
        ({"format": "pubmedqa"}, "p.json"),
        ({"format": "bioasq"}, "b.json"),
        ({**RELATION, "format": "ddi"}, "a.xml"),
        ({**RELATION, "format": "marked", "columns": {"text": "text"}}, "m.jsonl"),
    ],
)
def test_windows_1252_in_every_format(tmp_path: Path, fields: dict[str, Any], name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"x\n\ncaf\xe9\n")
    with pytest.raises(BadInput, match=f"{name} line 3 is not UTF-8 text"):
        load(str(file), **fields)


def test_windows_1252_in_folders(tmp_path: Path, write: Write) -> None:
    write("neg/1.txt", "Bad.")
    write("pos/1.txt", "Good.").write_bytes(b"Good\n\x93fine\x94\n")
    with pytest.raises(BadInput, match="pos/1.txt line 2 is not UTF-8 text"):
        load(str(tmp_path), format="folders", labels=["neg", "pos"])
    write("x_abstracts.tsv", "1\ta\tb\n").write_bytes(b"1\ta\t\xb5g\n")
    with pytest.raises(BadInput, match="x_abstracts.tsv line 1 is not UTF-8 text"):
        load(str(tmp_path), **RELATION, format="chemprot")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (bz2.compress(b"sentence\tlabel\n"), "is compressed with bzip2: give UTF-8"),
        (lzma.compress(b"sentence\tlabel\n"), "is compressed with xz"),
        (b"PAR1\x15\x04\x15\xe0", "is a Parquet file"),
        (b"PK\x03\x04\x14\x00\xe9\x00", "is a zip archive"),
        ("sentence\tlabel\n".encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "t.tsv").write_bytes(data)
    with pytest.raises(BadInput, match=f"t.tsv {told}"):
        load(str(tmp_path / "t.tsv"))


def test_a_protein_is_no_parquet_file(write: Write) -> None:
    file = write("t.tsv", "PAR1\tB-Gene\nand\tO\n")
    assert load(str(file), **TOKENS).labels == ("O", "B-Gene", "I-Gene")


@pytest.mark.parametrize(
    "fields",
    [
        TOKENS,
        SQUAD,
        {"format": "pubmedqa"},
        {"format": "bioasq"},
        {"format": "folders", "labels": ["a", "b"]},
        {**RELATION, "format": "ddi"},
        {**RELATION, "format": "chemprot"},
    ],
)
def test_formats_that_the_hub_does_not_serve(fields: dict[str, Any]) -> None:
    told = f"task.test is a hub data set, which task.format .* marked read and {fields['format']} d"
    with pytest.raises(ValueError, match=told):
        load("train.txt", test="hub:some/name", **fields)


NLI = ["entailment", "neutral", "contradiction"]


def nli(*labels: int) -> list[dict[str, Any]]:
    return [{"sentence": f"s{i}", "label": label} for i, label in enumerate(labels)]


def test_class_names_of_the_hub(hub: Path) -> None:
    save_hub(hub / "snli", NLI, train=nli(0, 2, -1, 1), test=nli(1, 0))
    data = load("hub:snli::train", test="hub:snli::test")
    assert [x for _, _, x in texts(data)] == ["0", "2", "1"] and data.labels == ("0", "1", "2")
    assert data.train.reports == {"records with the label -1, which means unlabelled, left out": 1}
    named = load("hub:snli::train", test="hub:snli::test", labels=NLI)
    assert [x for _, _, x in texts(named)] == ["entailment", "contradiction", "neutral"]
    assert named.labels == tuple(NLI)


def test_hub_data_sets_that_number_a_class_differently(hub: Path) -> None:
    """MNLI and CommitmentBank on the hub: 1 is neutral in one and contradiction in the other."""
    save_hub(hub / "mnli", NLI, train=nli(0, 1, 2))
    save_hub(hub / "cb", [NLI[0], NLI[2], NLI[1]], test=nli(0, 1, 2))
    with pytest.raises(BadInput, match="hub:cb::test numbers the class contradiction 1, and"):
        load("hub:mnli::train", test="hub:cb::test")
    data = load("hub:mnli::train", test="hub:cb::test", labels=NLI)
    assert data.test is not None
    assert [e.label for e in data.test.examples] == [NLI[0], NLI[2], NLI[1]]


def test_nested_rows_of_the_hub(hub: Path) -> None:
    rows = [
        {"question": "Q", "context": {"contexts": ["a", "b"], "labels": ["X"]}, "answer": answer}
        for answer in ("yes", "no")
    ]
    save_hub(hub / "pqa", None, train=rows)
    columns = {"text": "question", "text_pair": "context", "label": "answer"}
    with pytest.raises(BadInput, match=r"row 0 has an object in the column context.*context.cont"):
        load("hub:pqa::train", columns=columns)
    columns["text_pair"] = "context.contexts"
    assert texts(load("hub:pqa::train", columns=columns))[0] == ("Q", "a b", "yes")
