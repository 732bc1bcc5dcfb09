"""Classes and their counts in each split, and what of them is told before training."""

from collections import Counter
from typing import Any

import pytest

from bert.tasks.classes import describe_classes
from bert.tasks.config import TaskConfig
from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import SEVERAL, TOKENS, Write, load


def table(*labels: str) -> str:
    return "sentence\tlabel\n" + "".join(f"s{i}\t{label}\n" for i, label in enumerate(labels))


def told(data: Any, **fields: Any) -> tuple[str, ...]:
    defaults: dict[str, Any] = {"kind": "classification", "metrics": ["accuracy"], "train": "x"}
    task = TaskConfig.model_validate({**defaults, "dev": "x", **fields})
    return describe_classes(data.classes, data.splits, task)


def test_counts(write: Write) -> None:
    train = write("train.tsv", table(*"aabbbc"))
    dev, test = write("dev.tsv", table("a", "b", "b")), write("test.tsv", table("c", "a"))
    data = load(str(train), dev=str(dev), test=str(test))
    assert data.classes == {
        "train": {"a": 2, "b": 3, "c": 1},
        "dev": {"a": 1, "b": 2, "c": 0},
        "test": {"a": 1, "b": 0, "c": 1},
    }
    assert told(data) == (
        "train: 6 examples; of each class: a (2), b (3), c (1)",
        "dev: 3 examples; of each class: a (1), b (2), c (0)",
        "test: 2 examples; of each class: a (1), b (0), c (1)",
    )
    assert data.warnings == ()


def test_counts_of_several_classes_and_of_a_drawn_dev(write: Write) -> None:
    labels = [("x", "y", "x,y", "")[i % 4] for i in range(40)]
    data = load(str(write("t.tsv", table(*labels))), dev=None, dev_fraction=0.25, **SEVERAL)
    for split in ("train", "dev"):
        found = Counter(x for e in data.splits[split].examples for x in e.label)
        assert data.classes[split] == dict(found)
    assert sum(counts["x"] for counts in data.classes.values()) == 20


def test_counts_of_tags_are_of_words(write: Write) -> None:
    file = write("t.tsv", "a\tB-X\nb\tI-X\nc\tO\n\nd\tB-Y\n")
    data = load(str(file), **TOKENS)
    assert data.classes["train"] == {"O": 1, "B-X": 1, "B-Y": 1, "I-X": 1, "I-Y": 0}
    assert told(data, **TOKENS)[0] == (
        "train: 2 examples; words with each tag: O (1), B-X (1), B-Y (1), I-X (1), I-Y (0)"
    )
    assert not data.warnings, "that no Y is longer than a word is nothing to ask about"


def test_of_very_many_classes_the_frequent_ones_are_told(write: Write) -> None:
    labels = [f"c{i:02}" for i in range(30) for _ in range(30 - i)]
    data = load(str(write("t.tsv", table(*labels))))
    (line, _) = told(data)
    assert line.startswith("train: 465 examples; of each class: c00 (30), c01 (29), ")
    assert line.endswith(f"c11 (19), 18 more classes ({sum(range(1, 19))})")
    assert len(data.classes["train"]) == 30


def test_scores_have_no_classes(write: Write) -> None:
    file = write("t.tsv", table("0.5", "1"))
    data = load(str(file), kind="regression", metrics=["pearson"])
    assert data.classes == {"train": {}, "dev": {}}
    assert told(data, kind="regression", metrics=["pearson"])[0] == "train: 2 examples"


ALIKE = "differ in nothing but capital letters, blanks or characters that do not show"


def test_labels_that_are_equal_but_for_case(write: Write) -> None:
    data = load(str(write("t.tsv", table("Pos", "pos", "POS", "neg"))))
    assert data.warnings == (f"the labels 'POS' and 'Pos' and 'pos' {ALIKE}",)
    tags = load(str(write("n.tsv", "a\tB-Drug\nb\tO\nc\tB-drug\nd\tI-drug\n")), **TOKENS)
    assert tags.warnings == (f"the labels 'Drug' and 'drug' {ALIKE}",)
    hidden = load(str(write("t.tsv", table("a b", "a  b", "c", "c\u200b"))))
    assert hidden.warnings == (
        f"the labels 'a  b' and 'a b' {ALIKE}",
        f"the labels 'c' and 'c\\u200b' {ALIKE}",
    )


def test_a_class_of_one_split_alone(write: Write) -> None:
    train = write("train.tsv", table(*"abcd"))
    dev = write("dev.tsv", table("a", "b"))
    data = load(str(train), dev=str(dev))
    assert data.warnings == ("only task.train has the labels 'c', 'd'",)
    data = load(str(dev), dev=str(train), labels=["a", "b", "c", "d"])
    assert data.warnings == ("only task.dev has the labels 'c', 'd'",)


def test_a_string_that_looks_unlabelled(write: Write) -> None:
    file = str(write("t.tsv", table("-1", "1", "0")))
    (warning,) = load(file).warnings
    assert warning.startswith("the label '-1' is a class of its own")
    assert load(file, labels=["-1", "0", "1"]).warnings == ()


def test_tags_without_an_entity(write: Write) -> None:
    with pytest.raises(BadInput, match="task.train has no entity"):
        load(str(write("t.tsv", "a\tO\nb\tO\n")), **TOKENS)


def test_the_labels_of_a_begun_run_keep_their_order(write: Write) -> None:
    from bert.tasks.splits import load_task

    file = str(write("t.tsv", table("b", "a")))
    fields = {"kind": "classification", "metrics": ["accuracy"], "train": file, "dev": file}
    task = TaskConfig.model_validate(fields)
    assert load_task(task).labels == ("a", "b")
    assert load_task(task, begun_labels=["b", "a"]).labels == ("b", "a")
    assert load_task(task, begun_labels=["a", "b", "b "]).labels == ("a", "b")
