"""Readers of texts with a label, on a few records of each published format."""

import json
from typing import Any

import pytest

from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import SEVERAL, Write, load, texts

GLUE = {
    "SST-2": (
        'sentence\tlabel\nhide new secretions \t0\na "fine" film\t1\n',
        {"columns": {"text": "sentence", "label": "label"}},
        [("hide new secretions", None, "0"), ('a "fine" film', None, "1")],
    ),
    "CoLA": (
        "gj04\t1\t\tOur friends won't buy it.\ngj04\t0\t*\tThem loves.\n",
        {"header": False, "columns": {"text": 3, "label": 1}},
        [("Our friends won't buy it.", None, "1"), ("Them loves.", None, "0")],
    ),
    "MRPC": (
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "no\n\t\n'.replace(
            "\n\t\n", "\tNo, he said\n"
        )
        + "0\t9\t10\tOne\tTwo\n",
        {"columns": {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}},
        [('He said "no', "No, he said", "1"), ("One", "Two", "0")],
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tA?\tB?\t0\n4\t5\t6\tC?\tD?\t1\n",
        {"columns": {"text": "question1", "text_pair": "question2", "label": "is_duplicate"}},
        [("A?", "B?", "0"), ("C?", "D?", "1")],
    ),
    "MNLI": (
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\tfiction\tA\tB\tneutral\tneutral\n1\tfiction\tC\tD\tneutral\t-\n"
        "2\tfiction\tE\tF\tentailment\tentailment\n",
        {
            "columns": {"text": "sentence1", "text_pair": "sentence2", "label": "gold_label"},
            "skip_labels": ["-"],
        },
        [("A", "B", "neutral"), ("E", "F", "entailment")],
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel\n0\tQ?\tS.\tentailment\n1\tR?\tT.\tnot_entailment\n",
        {"columns": {"text": "question", "text_pair": "sentence"}},
        [("Q?", "S.", "entailment"), ("R?", "T.", "not_entailment")],
    ),
    "GAD of BioBERT": (
        "the @GENE$ gene in @DISEASE$\t1\nno @GENE$ in @DISEASE$\t0\n",
        {"header": False, "columns": {"text": 0, "label": 1}},
        [("the @GENE$ gene in @DISEASE$", None, "1"), ("no @GENE$ in @DISEASE$", None, "0")],
    ),
}


@pytest.mark.parametrize("name", GLUE)
def test_tables(write: Write, name: str) -> None:
    text, fields, want = GLUE[name]
    assert texts(load(str(write("train.tsv", text)), **fields)) == want


def test_scores_and_the_table_of_biosses(write: Write) -> None:
    header = "index\tgenre\tsentence1\tsentence2\tscore\n"
    file = write("train.tsv", header + "0\tna\tCell A\tCell B\t3.8\n1\tna\tX\tY\t0\n")
    fields = {
        "kind": "regression",
        "metrics": ["pearson"],
        "columns": {"text": "sentence1", "text_pair": "sentence2", "label": "score"},
    }
    assert texts(load(str(file), **fields)) == [("Cell A", "Cell B", 3.8), ("X", "Y", 0.0)]
    bad = write("bad.tsv", header + "0\tna\tA\tB\t3,8\n")
    with pytest.raises(BadInput, match=r"bad.tsv line 2 has '3,8' as its score"):
        load(str(bad), **fields)


def test_a_comma_separated_table_may_quote(write: Write) -> None:
    file = write("imdb.csv", 'review,sentiment\n"Good, ""very"" good",pos\nBad,neg\n')
    data = load(str(file), columns={"text": "review", "label": "sentiment"})
    assert texts(data) == [('Good, "very" good', None, "pos"), ("Bad", None, "neg")]


def test_json_lines_with_where_and_lists(write: Write) -> None:
    records = [
        {"split": "train", "fold": 1, "s": ["One.", "Two."], "labels": ["a", "b"]},
        {"split": "train", "fold": 2, "s": ["Three."], "labels": []},
        {"split": "dev", "fold": None, "s": ["Four."], "labels": ["b"]},
    ]
    file = write("hoc.jsonl.gz", "\n".join(map(json.dumps, records)) + "\n")
    data = load(
        {"paths": str(file), "where": {"split": "train", "fold": [1, 2]}},
        dev={"paths": str(file), "where": {"split": "dev"}},
        kind="multi_label",
        metrics=["micro_f1"],
        columns={"text": "s", "label": "labels"},
    )
    assert texts(data) == [("One. Two.", None, ("a", "b")), ("Three.", None, ())]
    assert len(data.dev.examples) == 1 and data.labels == ("a", "b")


def test_indexed_labels_of_blue(write: Write) -> None:
    file = write("hoc.tsv", "labels\tsentence\tindex\n0_0,1_1,2_1\tA\t1\n0_1,1_0,2_0\tB\t2\n")
    data = load(str(file), kind="multi_label", metrics=["micro_f1"], columns={"label": "labels"})
    assert texts(data) == [("A", None, ("1", "2")), ("B", None, ("0",))]


def test_sentences_of_one_abstract_are_one_text(write: Write) -> None:
    """BLUE's HoC: a row a sentence, whose index is PMID_s3; BLURB scores abstracts."""
    rows = [
        ("0_0,1_1,2_0", "First.", "101_s0"),
        ("0_0,1_0,2_0", "Other.", "7_s0"),
        ("0_1,1_1,2_0", "Second.", "101_s1"),
        ("0_0,1_0,2_1", "", "101_s2"),
    ]
    table = "".join("\t".join(row) + "\n" for row in [("labels", "sentence", "index"), *rows])
    file = write("hoc.tsv", table)
    columns = {"label": "labels", "document": "index"}
    data = load(str(file), kind="multi_label", metrics=["micro_f1"], columns=columns)
    assert texts(data) == [("First. Second.", None, ("1", "0")), ("Other.", None, ())]
    assert data.train.reports["records joined to the text that they belong to"] == 1
    assert data.train.reports["records with an empty text skipped"] == 1
    columns["document"] = "pmid"
    with pytest.raises(BadInput, match=r"line 2 has no column pmid \(task.columns\)"):
        load(str(file), kind="multi_label", metrics=["micro_f1"], columns=columns)
    with pytest.raises(ValueError, match=r"task.columns.document is for records of multi_label"):
        load(str(file), columns=columns)


def test_a_folder_a_label(write: Write) -> None:
    for name, text in (("pos/0_9.txt", "Great."), ("neg/0_1.txt", "Bad."), ("neg/1_1.txt", " ")):
        folder = write(f"train/{name}", text).parents[1]
    write("train/unsup/0_0.txt", "Unlabelled.")
    data = load(str(folder), format="folders", labels=["neg", "pos"])
    assert texts(data) == [("Bad.", None, "neg"), ("Great.", None, "pos")]
    assert data.train.reports == {"records with an empty text skipped": 1}


def test_bad_records_can_be_counted_instead(write: Write) -> None:
    file = write("train.tsv", "sentence\tlabel\na\t0\nb\nc\t1\td\n\t1\ne\t1\n")
    data = load(str(file), bad_records="skip")
    assert [t for t, _, _ in texts(data)] == ["a", "e"]
    assert data.train.reports == {
        "records with wrong columns skipped": 2,
        "records with an empty text skipped": 1,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sentence\tlabel\na\t0\nb\n", "train.tsv line 3 has 1 columns instead of 2"),
        ("text\tlabel\na\t0\n", "train.tsv line 2 has no column sentence .*but text, label"),
        ("sentence\tlabel\na\t\n", "train.tsv line 2 has no label in column label"),
        ("sentence\tlabel\na\t1\n", "task.train has only the label 1"),
        ('{"sentence": "a", "label"\n', "train.tsv line 1 is not JSON"),
        ("sentence\tlabel\n\t0\n", "task.train has no example"),
    ],
)
def test_wrong_tables(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load(str(write("train.tsv", text)))


def record(**fields: Any) -> str:
    return json.dumps({"sentence": "s", "label": "a", **fields})


NESTED = {"contexts": ["We gave it.", "It did."], "labels": ["METHODS", "RESULTS"]}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sentence": NESTED}, r"an object in the column sentence.*sentence.contexts or sentence"),
        ({"sentence": 5}, "the number 5 in the column sentence, where a text or a list of texts"),
        ({"sentence": float("nan")}, "the number nan in the column sentence"),
        ({"sentence": True}, "true in the column sentence"),
        ({"sentence": ["a", None]}, "null among the texts of sentence, which must be strings"),
        ({"sentence": ["a", ["b"]]}, "a list among the texts of sentence"),
        ({"sentence": ["a", 3]}, "the number 3 among the texts of sentence"),
        ({"sentence": [{"text": "a"}]}, "an object among the texts of sentence"),
    ],
)
def test_a_field_that_is_no_text(write: Write, fields: dict[str, Any], told: str) -> None:
    file = write("t.jsonl", f"{record(label='b')}\n\n{record(**fields)}\n")
    with pytest.raises(BadInput, match=f"t.jsonl line 3 has {told}"):
        load(str(file))


def test_a_dotted_path_names_a_nested_field(write: Write) -> None:
    """Rows of PubMedQA as the hub has them."""
    rows = [
        {"question": f"Q{i}", "context": NESTED, "context.meshes": "exact", "final_decision": x}
        for i, x in enumerate(("yes", "no"))
    ]
    file = str(write("t.jsonl", "\n".join(map(json.dumps, rows))))
    columns = {"text": "question", "text_pair": "context.contexts", "label": "final_decision"}
    assert texts(load(file, columns=columns))[0] == ("Q0", "We gave it. It did.", "yes")
    columns["text_pair"] = "context.meshes"
    assert texts(load(file, columns=columns))[0][1] == "exact", "a column's own name comes first"
    columns["text_pair"] = "context.nothing"
    with pytest.raises(BadInput, match="line 1 has no column context.nothing .*but question, "):
        load(file, columns=columns)


def test_null_is_an_empty_text(write: Write) -> None:
    file = write("t.jsonl", "\n".join([record(sentence=None), record(), record(label="b")]))
    data = load(str(file))
    assert len(data.train.examples) == 2
    assert data.train.reports == {"records with an empty text skipped": 1}


def test_a_text_that_spells_a_list_is_read_and_counted(write: Write) -> None:
    rows = "['One.', 'Two.']\ta\n{'contexts': ['x']}\tb\n[sic] so it is]\ta\n"
    data = load(str(write("t.tsv", f"sentence\tlabel\n{rows}")))
    assert texts(data)[0][0] == "['One.', 'Two.']"
    assert data.train.reports == {"texts that spell a list or an object read as they are": 2}


def test_a_json_array_is_read_as_its_lines_would_be(write: Write) -> None:
    records = [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 1}]
    lines = load(str(write("t.jsonl", "\n".join(map(json.dumps, records)))))
    array = load(str(write("t.json", json.dumps(records, indent=2))))
    assert texts(array) == texts(lines) and array.fingerprint == lines.fingerprint
    assert [e.place.rpartition("/")[2] for e in array.train.examples] == [
        "t.json element 1",
        "t.json element 2",
    ]
    with pytest.raises(BadInput, match="t.json element 2 is not a JSON object"):
        load(str(write("t.json", '[{"sentence": "a", "label": 0}, 7]')))
    with pytest.raises(BadInput, match=r"t.json line 2 is not JSON"):
        load(str(write("t.json", '[{"sentence": "a",\n "label" 0}]')))


def test_a_table_may_begin_with_a_bracket(write: Write) -> None:
    file = write("t.tsv", "[sentence\tlabel\n[a]\t0\n[b\t1\n")
    assert [t for t, _, _ in texts(load(str(file), columns={"text": "[sentence"}))] == ["[a]", "[b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", '{"sentence": "s", "label": "a", "label": "b"}\n'),
        ("t.tsv", "sentence\tlabel\tlabel\ns\ta\tb\n"),
        ("t.csv", "sentence,label,label\ns,a,b\n"),
    ],
)
def test_a_column_that_is_there_twice(write: Write, name: str, text: str) -> None:
    with pytest.raises(BadInput, match=r"has the column label twice, with two values"):
        load(str(write(name, text)))


def test_columns_that_agree_or_are_not_read_may_be_there_twice(write: Write) -> None:
    file = write("t.tsv", "sentence\tlabel\tlabel\tid\tid\ns\ta\ta\t1\t2\nt\tb\tb\t3\t4\n")
    assert texts(load(str(file))) == [("s", None, "a"), ("t", None, "b")]


@pytest.mark.parametrize(
    ("where", "want"),
    [
        ({"fold": 1}, ["a", "b"]),  # 1 and 1.0
        ({"fold": [1.0]}, ["a", "b"]),
        ({"fold": "1"}, ["a"]),
        ({"kept": True}, ["a"]),
        ({"kept": "true"}, ["a"]),
        ({"meta.part": "x"}, ["b"]),
    ],
)
def test_where_compares_by_value(write: Write, where: dict[str, Any], want: list[str]) -> None:
    records = [
        {"sentence": "a", "label": 0, "fold": 1, "kept": True, "meta": {"part": "y"}},
        {"sentence": "b", "label": 1, "fold": 1.0, "kept": False, "meta": {"part": "x"}},
        {"sentence": "c", "label": 1, "fold": True, "kept": None, "meta": {"part": None}},
    ]
    file = str(write("t.jsonl", "\n".join(map(json.dumps, records))))
    data = load({"paths": file, "where": where}, labels=["0", "1"])
    assert [t for t, _, _ in texts(data)] == want
    unmatched = "values of where that no record has"
    assert not data.train.reports[unmatched]
    data = load({"paths": file, "where": {"fold": [1, "l", 7]}}, labels=["0", "1"])
    assert data.train.reports == {unmatched: 2}
    with pytest.raises(BadInput, match=r"line 1 has an object in the column meta, which task"):
        load({"paths": file, "where": {"meta": "x"}})


@pytest.mark.parametrize("value", [None, "", 1.5, True, ["7"]])
def test_a_document_has_a_name(write: Write, value: Any) -> None:
    rows = [{"sentence": "s", "label": ["a"], "doc": 7}, {"sentence": "t", "label": [], "doc": "7"}]
    columns = {"document": "doc"}
    joined = load(
        str(write("t.jsonl", "\n".join(map(json.dumps, rows)))), **SEVERAL, columns=columns
    )
    assert texts(joined) == [("s t", None, ("a",))]
    rows[1]["doc"] = value
    with pytest.raises(BadInput, match="line 2 has .* in the column doc, where a name or a whole"):
        load(str(write("t.jsonl", "\n".join(map(json.dumps, rows)))), **SEVERAL, columns=columns)


@pytest.mark.parametrize("score", [True, None, "", "1_0", "0x1", [1], {"a": 1}, "inf", "nan", "٣"])
def test_what_is_no_score(write: Write, score: Any) -> None:
    file = write("t.jsonl", f"{record(label=0)}\n{record(label=score)}\n")
    with pytest.raises(BadInput, match="t.jsonl line 2 has .* as its score, which is no finite"):
        load(str(file), kind="regression", metrics=["pearson"])


def test_scores_as_people_write_them(write: Write) -> None:
    scores = [3, 3.8, "3.80", " 4 ", "-.5", "+1e-2", "5."]
    file = write("t.jsonl", "\n".join(record(label=score) for score in scores))
    data = load(str(file), kind="regression", metrics=["pearson"])
    assert [x for _, _, x in texts(data)] == [3.0, 3.8, 3.8, 4.0, -0.5, 0.01, 5.0]
