"""A text field is a string or null, and its text is no markup."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert.corpora.inputs import list_inputs
from bert.corpora.manifest import Source
from bert.corpora.readers import read_inputs
from bert.corpora.records import MARKUP_SAMPLE
from distributed.errors import BadInput


def read(source: Source, path: Path, records: Sequence[Any]) -> tuple[list[str], Counter[str]]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    dropped: Counter[str] = Counter()
    documents = read_inputs(source, list_inputs(source, [path]).read, dropped=dropped)
    return [document.text for document in documents], dropped


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"content": "a"}, "an object"),
        (["a", "b"], "a list"),
        (5, "a number"),
        (0.5, "a number"),
        (float("nan"), "a number"),
        (True, "true or false"),
    ],
)
@pytest.mark.parametrize(
    ("source", "field"),
    [("text", "text"), ("wikipedia", "title"), ("wikipedia", "text"), ("pubmed", "abstract")],
)
def test_a_field_is_never_turned_into_text(
    tmp_path: Path, source: Source, field: str, value: object, kind: str
) -> None:
    good = {"title": "T", "text": "a", "abstract": "a"}
    said = f"a line 2: the field '{field}' is {kind}, not a string"
    with pytest.raises(BadInput, match=said):
        read(source, tmp_path / "a", [good, {**good, field: value}])


@pytest.mark.parametrize("value", [3, [["a"]], b"bytes", {"a": "b"}])
def test_nor_is_a_column_of_parquet(tmp_path: Path, value: object) -> None:
    made = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"text": value}]), made)
    (tmp_path / "a").write_bytes(made.getvalue())
    inputs = list_inputs("text", [tmp_path / "a"]).read
    with pytest.raises(BadInput, match="a record 1: the field 'text' is .*, not a string"):
        list(read_inputs("text", inputs, dropped=Counter()))


def test_null_is_no_text(tmp_path: Path) -> None:
    records = [{"title": None, "text": "a"}, {"title": "T", "text": None}, {"text": ""}]
    texts, dropped = read("wikipedia", tmp_path / "a", records)
    assert texts == ["a"] and dropped == {"without_text": 2}


def test_what_a_record_lacks_is_told_in_one_sentence(tmp_path: Path) -> None:
    cirrus = [{"index": {"_type": "page", "_id": "1"}}, {"title": "T", "text": "a"}]
    with pytest.raises(BadInput, match="line 1 is an index line of a CirrusSearch dump.*grep -v"):
        read("wikipedia", tmp_path / "a", cirrus)
    with pytest.raises(BadInput, match=r"it has k00, k01, .*, k09, \.\.\.\): rename"):
        read("text", tmp_path / "a", [{f"k{number:02}": 1 for number in range(99)}])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"}{"text": "b"}', "more than one value in it"),
        ('{"text": "a"},', "a comma after the object"),
        ("{'text': 'a'}", "Expecting property name enclosed in double quotes"),
        ('{"text": ' + "[" * 100_000, "maximum recursion depth exceeded.*"),
        ('{"text": ' + "1" * 10_000 + "}", "Exceeds the limit.*"),
    ],
)
def test_why_a_line_is_no_json(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(
        BadInput, match=rf"line 2 is not valid JSON \({reason}\): mend it"
    ) as caught:
        list(read_inputs("text", list_inputs("text", [tmp_path / "a"]).read, dropped=Counter()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!DOCTYPE html>\n<html><p>Words", "HTML"),
        ("<p>Words</p>", "HTML"),
        ("<jats:p>Words</jats:p>", "begins with <jats:p>"),
        ('<doc id="1" url="x" title="A">\nA', "wikiextractor"),
        ("{{short description|a river}}\n'''A''' is a [[river]].", "wikitext"),
        ("'''A''' is [[b]], [[c]], [[d]], [[e]] and [[f]].", "wikitext"),
        ("\\documentclass{article}", "LaTeX"),
    ],
)
def test_markup_in_most_records_is_refused_and_one_about_markup_is_not(
    tmp_path: Path, text: str, said: str
) -> None:
    plain = {"text": "Words."}
    with pytest.raises(BadInput, match=f"field 'text' of .*a line 2 is .*{said}"):
        read("text", tmp_path / "a", [plain, {"text": text}])
    many = [{"text": text}, *[plain] * (MARKUP_SAMPLE // 2), *[{"text": text}] * 3]
    texts, _ = read("text", tmp_path / "a", many)
    assert texts == [record["text"] for record in many]


def test_inline_marks_and_chemprot_are_text(tmp_path: Path) -> None:
    texts = ["<unk> was a king", "<< EGFR >> inhibits [[ gefitinib ]]", "[[1]] and [[2]]", "<3"]
    assert read("text", tmp_path / "a", [{"text": text} for text in texts])[0] == texts
