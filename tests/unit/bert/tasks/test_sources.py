"""Files and hub data sets: what cannot be read is one sentence with the file and the line."""

import json
from pathlib import Path
from typing import Any

import pytest

from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import SQUAD, Write, load, texts


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


def test_a_hub_data_set(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """datasets.load_dataset itself, on a folder in the place of a name; the look-up is ours."""
    import bert.corpora.inputs
    from bert.corpora.inputs import Input

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    records = [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}]
    for split in ("train", "validation"):
        write(
            f"set/{split}.jsonl",
            "\n".join(map(json.dumps, records[: 2 if split == "train" else 1])),
        )

    def look_up(source: str) -> Input:
        name, _, split = source.removeprefix("hub:").split(":")
        assert name == "glue/sst2"
        return Input(source, 0, "", (str(tmp_path / "set"), None, split, "main"))

    monkeypatch.setattr(bert.corpora.inputs, "hub_input", look_up)
    data = load("hub:glue/sst2::train", dev="hub:glue/sst2::validation", labels=["0", "1"])
    assert texts(data) == [("a", None, "0"), ("b", None, "1")]
    assert [example.place for example in data.dev.examples] == ["hub:glue/sst2::validation row 0"]
    with pytest.raises(BadInput, match="hub:glue/sst2::test cannot be loaded"):
        load("hub:glue/sst2::test")
