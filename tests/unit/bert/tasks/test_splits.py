"""A task's splits and labels together: what one says and another does not know."""

from typing import Any

import pytest

from bert.tasks.config import TaskConfig
from bert.tasks.formats.examples import TextExample
from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import RELATION, SEVERAL, TOKENS, Write, load, texts


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
        (
            {"kind": "tokens", "format": "tags", "metrics": ["entity_f1"], "quotes": True},
            "task.quotes is not for task.format tags",
        ),
        (
            {"kind": "classification", "metrics": ["accuracy"], "format": "folders"},
            "task.format folders needs task.labels",
        ),
        (
            {"kind": "classification", "metrics": ["accuracy"], "skip_labels": ["- "]},
            "task.skip_labels has a label with blanks at its ends",
        ),
        (
            {"kind": "classification", "metrics": ["accuracy"], "labels": ["a", "a "]},
            "task.labels names a label twice",
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


NER = "a\tB-X\nb\tI-Y\n"
DDI = (
    '<document><sentence id="s" text="ab cd"><entity id="a" charOffset="0-1" text="ab"/>'
    '<entity id="b" charOffset="{0}" text="cd"/><pair e1="a" e2="b" ddi="false"/>'
    '<pair e1="b" e2="a" ddi="true" type="int"/></sentence></document>'
)
TABLE = "sentence\tlabel\na\t{0}\nb\t1\n"
LINES = '{{"sentence": "a", "label": {0}}}\n{{"sentence": "b", "label": {1}}}\n'


@pytest.mark.parametrize(
    ("name", "text", "fields", "rules"),
    [
        ("t.tsv", TABLE.format("0"), {}, ()),
        ("t.tsv", TABLE.format("0 "), {}, ("labels lose the blanks at their ends",)),
        ("t.tsv", TABLE.format("0").replace("\na", '\n"a"'), {}, ()),
        (
            "t.tsv",
            TABLE.format("0").replace("\na", '\n"a""a"'),
            {},
            ("cells of a quoted table lose their quotes",),
        ),
        ("t.jsonl", LINES.format(0, 1), {}, ()),
        ("t.jsonl", LINES.format(0.0, 1.0), {}, ()),
        ("t.jsonl", LINES.format(0, 1.0) + LINES.format(1, 0), {}, ("numbers count by value",)),
        (
            "t.jsonl",
            LINES.format(0, 1) + LINES.format(-1, 0),
            {},
            ("the label -1 means unlabelled",),
        ),
        ("t.jsonl", LINES.format(-1, 1), {"labels": ["-1", "1"]}, ()),
        ("t.jsonl", LINES.format(0, 1), {"label_map": {"1": "x"}}, ()),
        ("t.jsonl", LINES.format(0, 1), {"label_map": {"1.0": "x"}}, ("numbers count by value",)),
        ("t.jsonl", LINES.format(1, "[2]"), SEVERAL, ()),
        ("t.jsonl", LINES.format(0, "[2]"), SEVERAL, ("numbers count by value",)),
        ("t.txt", NER, TOKENS, ()),
        (
            "t.txt",
            NER,
            {**TOKENS, "merge_types": "E"},
            ("entities are found before their types are merged",),
        ),
        ("a.xml", DDI.format("3-4"), {**RELATION, "format": "ddi"}, ()),
        (
            "a.xml",
            DDI.format("2-3"),
            {**RELATION, "format": "ddi"},
            ("a text counts where its offsets disagree",),
        ),
    ],
)
def test_newer_rules_are_named_where_they_matter(
    write: Write, name: str, text: str, fields: dict[str, Any], rules: tuple[str, ...]
) -> None:
    """Rules since the first version, which a refusal of a run that has begun puts forward."""
    assert load(str(write(name, text)), **fields).newer_rules == rules
