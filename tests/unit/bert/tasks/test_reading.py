"""Readers, on a few records of each published format; what is wrong is named by file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert.tasks.configuration import TaskConfig
from bert.tasks.examples import QuestionExample, TextExample, TokenExample
from bert.tasks.reading_relations import _sentences
from bert.tasks.splits import TaskData, load_task
from distributed.errors import BadInput

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return file

    return write


def load(train: Any, **fields: Any) -> TaskData:
    defaults = {"kind": "classification", "metrics": ["accuracy"], "train": train, "dev": train}
    return load_task(TaskConfig.model_validate({**defaults, **fields}))


def texts(data: TaskData) -> list[tuple[str, str | None, Any]]:
    examples = data.train.examples
    return [(e.text, e.text_pair, e.label) for e in examples if isinstance(e, TextExample)]


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


def test_pubmedqa_never_reads_the_conclusion(write: Write) -> None:
    article = {
        "QUESTION": "Does it?",
        "CONTEXTS": ["Some did.", "Some not."],
        "LONG_ANSWER": "It does.",
        "final_decision": "yes",
    }
    articles = {"12": article, "13": {**article, "final_decision": "no"}}
    data = load(str(write("pqa.json", json.dumps(articles))), format="pubmedqa")
    assert texts(data)[0] == ("Does it?", "Some did. Some not.", "yes")
    del article["final_decision"]
    with pytest.raises(BadInput, match="pqa.json article 12 has no 'final_decision'"):
        load(str(write("pqa.json", json.dumps(articles))), format="pubmedqa")


def test_bioasq_takes_the_yes_no_questions(write: Write) -> None:
    questions = [
        {"type": "yesno", "body": "Is it?", "snippets": [{"text": "a"}, {"text": "b"}],
         "exact_answer": "Yes"},
        {"type": "factoid", "body": "What?", "snippets": [], "exact_answer": [["x"]]},
        {"type": "yesno", "body": "Or?", "snippets": [], "exact_answer": ["no"]},
    ]  # fmt: skip
    data = load(str(write("b.json", json.dumps({"questions": questions}))), format="bioasq")
    assert texts(data) == [("Is it?", "a b", "yes"), ("Or?", None, "no")]
    assert data.train.reports == {"questions that are not yes/no skipped": 1}


def tags(data: TaskData) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(e.words, e.tags) for e in data.train.examples if isinstance(e, TokenExample)]


TOKENS = {"kind": "tokens", "format": "tags", "metrics": ["entity_f1"]}


def test_two_columns(write: Write) -> None:
    file = write("train.tsv", "APC2\tB-Gene\nhere\tO\n\n\ncolon\tB-Disease\ncancer\tI-Disease\n")
    data = load(str(file), **TOKENS)
    assert tags(data) == [
        (("APC2", "here"), ("B-Gene", "O")),
        (("colon", "cancer"), ("B-Disease", "I-Disease")),
    ]
    # A class that training shows only as B- can be longer elsewhere.
    assert data.labels == ("O", "B-Disease", "B-Gene", "I-Disease", "I-Gene")


def test_conll_2003_in_iob1(write: Write) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nUN NNP I-NP B-ORG\n"
    text += "HQ NN I-NP I-ORG\nhi UH O O\n"
    data = load(str(write("eng.train", text)), **TOKENS, tag_scheme="iob1")
    assert tags(data) == [(("EU", "UN", "HQ", "hi"), ("B-ORG", "B-ORG", "I-ORG", "O"))]
    assert data.train.reports == {"I- tags of IOB1 that begin an entity written as B-": 1}


def test_pico_has_no_begin(write: Write) -> None:
    text = "-DOCSTART- (10037531)\n\nXylitol NN O I-INT\nfor NN O O\ncaries NN O I-OUT\n"
    data = load(str(write("pico", text)), **TOKENS, tag_scheme="io")
    assert tags(data)[0][1] == ("I-INT", "O", "I-OUT") and data.labels == ("O", "I-INT", "I-OUT")
    assert not data.train.reports


def test_jnlpba_types_are_merged(write: Write) -> None:
    file = write("t.tsv", "IL-2\tB-DNA\ngene\tI-DNA\nin\tO\nT\tB-cell_type\n")
    data = load(str(file), **TOKENS, merge_types="Entity")
    assert tags(data)[0][1] == ("B-Entity", "I-Entity", "O", "B-Entity")


def test_unbalanced_tags_are_mended_and_counted(write: Write) -> None:
    file = write("t.tsv", "a\tI-X\nb\tB-X\nc\tI-Y\nd\tI-Y\n")
    data = load(str(file), **TOKENS)
    assert tags(data)[0][1] == ("B-X", "B-X", "B-Y", "I-Y")
    assert data.train.reports == {"I- tags that no B- begins read as B-": 2}


SQUAD = {"kind": "question_answering", "format": "squad", "metrics": ["answer_f1"]}


def squad(*questions: dict[str, Any]) -> str:
    paragraph = {"context": "The Broncos of Denver won. Denver is happy.", "qas": list(questions)}
    return json.dumps({"data": [{"title": "T", "paragraphs": [paragraph]}], "version": "1.1"})


def test_squad(write: Write) -> None:
    good = {"id": "1", "question": "Where?", "answers": [{"text": "Denver", "answer_start": 15},
            {"text": "Broncos of Denver", "answer_start": 4}]}  # fmt: skip
    moved = {"id": "2", "question": "Q", "answers": [{"text": "happy", "answer_start": 0}]}
    lost = {"id": "3", "question": "Q", "answers": [{"text": "Berlin", "answer_start": 0}]}
    data = load(str(write("s.json", squad(good, moved, lost))), **SQUAD)
    examples = [e for e in data.train.examples if isinstance(e, QuestionExample)]
    assert [e.id for e in examples] == ["1", "2"]
    assert examples[0].answers == ("Denver", "Broncos of Denver")
    for example in examples:
        for text, start in zip(example.answers, example.answer_starts, strict=True):
            assert example.context[start:].startswith(text)
    assert sorted(data.train.reports.values()) == [1, 1, 1]
    with pytest.raises(BadInput, match="s.json question 1 is not in SQuAD's layout: 'text'"):
        bad = {**good, "answers": [{"answer_start": 3}]}
        load(str(write("s.json", squad(bad))), **SQUAD)


RELATION = {"kind": "relation", "metrics": ["micro_f1"]}


def test_chemprot_as_released(write: Write) -> None:
    title, abstract = "Aspirin blocks COX-1.", "It spares COX-2. Ibuprofen and COX-1 interact."
    text = f"{title} {abstract}"

    def entity(key: str, kind: str, name: str, occurrence: int = 0) -> str:
        start = -1
        for _ in range(occurrence + 1):
            start = text.index(name, start + 1)
        return f"77\t{key}\t{kind}\t{start}\t{start + len(name)}\t{name}\n"

    folder = write("cp/chemprot_training_abstracts.tsv", f"77\t{title}\t{abstract}\n").parent
    write(
        "cp/chemprot_training_entities.tsv",
        entity("T1", "CHEMICAL", "Aspirin")
        + entity("T2", "GENE-Y", "COX-1")
        + entity("T3", "GENE-N", "COX-2")
        + entity("T4", "CHEMICAL", "Ibuprofen")
        + entity("T5", "GENE-Y", "COX-1", 1),
    )
    write(
        "cp/chemprot_training_gold_standard.tsv",
        "77\tCPR:4\tArg1:T1\tArg2:T2\n77\tCPR:9\tArg1:T1\tArg2:T3\n77\tCPR:10\tArg1:T4\tArg2:T5\n",
    )
    data = load(str(folder), **RELATION, format="chemprot")
    assert texts(data) == [
        ("@CHEMICAL$ blocks @GENE$ .", None, "CPR:4"),
        ("@CHEMICAL$ and @GENE$ interact.", None, "false"),
    ]
    assert list(data.train.reports.values()) == [1]  # T1 and T3 are in different sentences
    write("cp/chemprot_training_gold_standard.tsv", "77\tCPR:4\tArg1:T1\tArg2:T9\n")
    with pytest.raises(BadInput, match=r"gold_standard.tsv line 1 names an entity"):
        load(str(folder), **RELATION, format="chemprot")


DDI = """<?xml version="1.0" encoding="UTF-8"?>
<document id="D1"><sentence id="D1.s0" text="Milk of calcium reduces tetracyclines.">
<entity id="D1.s0.e0" charOffset="0-3;8-14" type="drug" text="Milk calcium"/>
<entity id="D1.s0.e1" charOffset="24-36" type="group" text="tetracyclines"/>
<pair id="D1.s0.p0" e1="D1.s0.e0" e2="D1.s0.e1" ddi="true" type="mechanism"/>
<pair id="D1.s0.p1" e1="D1.s0.e1" e2="D1.s0.e0" ddi="false"/></sentence></document>"""


def test_ddi(write: Write) -> None:
    file = write("Train/DrugBank/a.xml", DDI)
    data = load(str(file.parents[1]), **RELATION, format="ddi")
    assert texts(data) == [
        ("@DRUG$ reduces @DRUG$ .", None, "DDI-mechanism"),
        ("@DRUG$ reduces @DRUG$ .", None, "false"),
    ]
    shown = load(str(file), **RELATION, format="ddi", entities="markers")
    assert texts(shown)[0][0] == "<< Milk of calcium >> reduces [[ tetracyclines ]] ."
    write("Train/DrugBank/a.xml", DDI.replace("24-36", "24"))
    with pytest.raises(BadInput, match=r"a.xml sentence D1.s0 has the charOffset '24'"):
        load(str(file), **RELATION, format="ddi")
    bomb = '<!DOCTYPE d [<!ENTITY a "b">]><d>&a;</d>'
    with pytest.raises(BadInput, match=r"a.xml is not XML that can be read"):
        load(str(write("Train/DrugBank/a.xml", bomb)), **RELATION, format="ddi")


def test_marked_texts(write: Write) -> None:
    records = [
        {"text": "<< COX-1 >> is hit by [[ aspirin ]].", "label": "INHIBITOR"},
        {"text": "[[ Zinc ]] feeds << ABC >>", "label": "OTHER"},
    ]
    file = write("c.jsonl", "\n".join(map(json.dumps, records)))
    fields = {**RELATION, "format": "marked", "columns": {"text": "text"}}
    assert [t for t, _, _ in texts(load(str(file), **fields))] == [
        "@GENE$ is hit by @CHEMICAL$ .",
        "@CHEMICAL$ feeds @GENE$",
    ]
    assert [t for t, _, _ in texts(load(str(file), **fields, entities="markers"))] == [
        "<< COX-1 >> is hit by [[ aspirin ]] .",
        "[[ Zinc ]] feeds << ABC >>",
    ]
    write("c.jsonl", json.dumps({"text": "<< a >> and b", "label": "X"}))
    with pytest.raises(BadInput, match=r"c.jsonl line 1 has 0 entities in \[\[ \]\]"):
        load(str(file), **fields)


def test_sentences_end_before_a_capital_but_not_after_an_abbreviation() -> None:
    text = "Given i.v. (5 mg) vs. Zinc in E. Coli, as et al. Say. It fell by 3. In (b) it did not."
    cuts = [text[start:end].strip() for start, end in _sentences(text, [])]
    assert cuts == [
        "Given i.v. (5 mg) vs. Zinc in E. Coli, as et al. Say.",
        "It fell by 3.",
        "In (b) it did not.",
    ]


def test_pairs_of_one_sentence_stay_in_one_split(write: Write) -> None:
    sentence = (
        '<sentence id="s{0}" text="A{0} B{0} C{0}."><entity id="a" charOffset="0-1"/>'
        '<entity id="b" charOffset="3-4"/><entity id="c" charOffset="6-7"/>'
        '<pair e1="a" e2="b" ddi="true" type="int"/><pair e1="a" e2="c" ddi="false"/>'
        '<pair e1="b" e2="c" ddi="true"/></sentence>'
    )
    document = "".join(sentence.format(n) for n in range(10, 40))
    file = write("a.xml", f"<document>{document}</document>")
    data = load(str(file), **RELATION, format="ddi", dev=None, dev_fraction=0.2)
    groups = [{e.group for e in s.examples if isinstance(e, TextExample)}
              for s in (data.train, data.dev)]  # fmt: skip
    assert len(groups[0]) == 24 and len(groups[1]) == 6 and not groups[0] & groups[1]
    assert data.train.reports["interacting pairs without a type read as DDI-int"] == 30


def test_a_quoted_text_with_a_tab_in_a_table_without_quotes(write: Write) -> None:
    file = write("b.tsv", 'sentence\tlabel\nan "odd" one\t0\n"two\tparts"\t1\n')
    assert texts(load(str(file))) == [('an "odd" one', None, "0"), ("two\tparts", None, "1")]


def test_an_answer_is_found_where_it_is_nearest(write: Write) -> None:
    context = "Rome was Rome and stayed Rome."
    moved = {"id": "1", "question": "Q", "answers": [{"text": "Rome", "answer_start": 26}]}
    paragraph = {"context": context, "qas": [moved]}
    file = write("s.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (example,) = load(str(file), **SQUAD).train.examples
    assert isinstance(example, QuestionExample) and example.answer_starts == (25,)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"kind": "tokens", "format": "tags", "metrics": ["entity_f1"],
             "train": {"paths": "a", "where": {"fold": 1}}},
            "task.train.where is not for task.format tags",
        ),
        (
            {"kind": "multi_label", "metrics": ["micro_f1"], "skip_labels": ["x"]},
            "task.skip_labels is for records",
        ),
        (
            {"kind": "tokens", "format": "tags", "metrics": ["entity_f1"], "label_map": {"a": "b"}},
            "task.label_map is not for task.format tags",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_no_reader_looks_at_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TaskConfig.model_validate({"train": "a", "dev": "a", **fields})


def test_metrics_that_do_not_fit_the_labels(write: Write) -> None:
    file = str(write("l.tsv", "sentence\tlabel\na\tfalse\nb\tCPR:3\nc\tCPR:4\n"))
    relation = {"kind": "relation", "metrics": ["positive_micro_f1"]}
    load(file, **relation, negative_labels=["false"])
    with pytest.raises(BadInput, match="task.negative_labels has 'False', which is no label"):
        load(file, **relation, negative_labels=["False"])
    with pytest.raises(BadInput, match="f1, which is of two labels, and the task has 3"):
        load(file, metrics=["f1"])


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


# What is wrong with a file.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sentence\tlabel\na\t0\nb\n", "train.tsv line 3 has 1 columns instead of 2"),
        ("text\tlabel\na\t0\n", "train.tsv line 2 has no column sentence .*but text, label"),
        ("sentence\tlabel\na\t\n", "train.tsv line 2 has no label in column label"),
        ("sentence\tlabel\na\t1\n", "task.train has the one label 1"),
        ('{"sentence": "a", "label"\n', "train.tsv line 1 is not JSON"),
        ("sentence\tlabel\n\t0\n", "task.train has no example"),
    ],
)
def test_wrong_tables(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load(str(write("train.tsv", text)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a O\nb\n", "t.txt line 2 has 1 columns, not 2"),
        ("a O\nb NN O\n", "t.txt line 2 has 3 columns, not 2"),
        ("a\tO\nb\tDisease\n", "t.txt line 2 has the tag 'Disease'"),
    ],
)
def test_wrong_tags(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load(str(write("t.txt", text)), **TOKENS)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_bytes(b"sentence\tlabel\nok\t1\nb\xe9\t0\n")
    with pytest.raises(BadInput, match=r"t.tsv line 3 is not UTF-8"):
        load(str(file))
    with pytest.raises(BadInput, match="does not exist"):
        load(str(tmp_path / "none.tsv"))


def test_bad_records_can_be_counted_instead(write: Write) -> None:
    file = write("train.tsv", "sentence\tlabel\na\t0\nb\nc\t1\td\n\t1\ne\t1\n")
    data = load(str(file), bad_records="skip")
    assert [t for t, _, _ in texts(data)] == ["a", "e"]
    assert data.train.reports == {
        "records with wrong columns skipped": 2,
        "records with an empty text skipped": 1,
    }


def test_a_label_that_training_lacks(write: Write) -> None:
    train = write("train.tsv", "sentence\tlabel\na\t0\nb\t1\n")
    test = write("test.tsv", "sentence\tlabel\nc\t1\nd\t2\n")
    with pytest.raises(BadInput, match=r"test.tsv line 3 has the label '2', which the training"):
        load(str(train), test=str(test))


def test_dev_is_drawn_by_content(write: Write) -> None:
    lines = [f"text number {i}\t{i % 2}" for i in range(40)]
    drawn = []
    for name, order in (("a.tsv", lines), ("b.tsv", lines[::-1])):
        file = write(name, "sentence\tlabel\n" + "\n".join(order) + "\n")
        data = load(str(file), dev=None, dev_fraction=0.25, labels=["0", "1"])
        assert len(data.train.examples) == 30 and data.train.reports.total() == 10
        drawn.append({e.text for e in data.dev.examples if isinstance(e, TextExample)})
        assert not drawn[-1] & {t for t, _, _ in texts(data)}
    assert drawn[0] == drawn[1] and len(drawn[0]) == 10


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
