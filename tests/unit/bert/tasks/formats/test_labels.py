"""What a label may be: every JSON value that people have written there, and the class it gives.

The right classes are worked out by hand: JSON numbers by value, strings without outer blanks.
"""

import json
from typing import Any

import pytest

from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import SEVERAL, Write, load, texts


def lines(*labels: Any) -> str:
    return "\n".join(json.dumps({"sentence": f"s{i}", "label": x}) for i, x in enumerate(labels))


def classes(write: Write, *labels: Any, **fields: Any) -> list[Any]:
    data = load(str(write("t.jsonl", lines(*labels))), **fields)
    return [label for _, _, label in texts(data)]


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ((0, 1), ["0", "1"]),
        ((0, 1, 1.0), ["0", "1", "1"]),
        ((1.0, 0, 1), ["1", "0", "1"]),
        ((0.0, 1.0), ["0.0", "1.0"]),  # as they were named before, for runs that go on
        (("1", 1.0, "0", 0), ["1", "1", "0", "0"]),
        ((True, False), ["True", "False"]),
        (("pos", "pos ", "\tneg", " neg\n"), ["pos", "pos", "neg", "neg"]),
        (("a b", "a  b"), ["a b", "a  b"]),
        (("-1", "1"), ["-1", "1"]),  # a string is no number
        ((2, 10, 0.5), ["2", "10", "0.5"]),
    ],
)
def test_one_class(write: Write, labels: tuple[Any, ...], want: list[str]) -> None:
    assert classes(write, *labels) == want


def test_a_number_has_one_name_in_all_files(write: Write) -> None:
    """A table says 1 and JSON 1.0: pandas writes numbers so where one of them is missing."""
    table = write("train.tsv", "sentence\tlabel\na\t0\nb\t1\n")
    dev = write("dev.jsonl", lines(1.0, 0))
    data = load(str(table), dev=str(dev))
    assert [e.label for e in data.dev.examples] == ["1", "0"] and data.labels == ("0", "1")
    data = load(str(write("t.jsonl", lines(0, 1))), labels=["1.0", "0.0"])
    assert data.labels == ("1.0", "0.0") and [x for _, _, x in texts(data)] == ["0.0", "1.0"]


@pytest.mark.parametrize("minus_one", [-1, -1.0])
def test_minus_one_is_unlabelled(write: Write, minus_one: float) -> None:
    """SNLI, and the test splits of GLUE on the hub."""
    data = load(str(write("t.jsonl", lines(0, minus_one, 1, minus_one))))
    assert [label for _, _, label in texts(data)] == ["0", "1"] and data.labels == ("0", "1")
    assert data.train.reports == {"records with the label -1, which means unlabelled, left out": 2}


@pytest.mark.parametrize(
    "fields",
    [{"labels": ["-1", "0", "1"]}, {"label_map": {"-1": "-1"}}, {"labels": ["-1.0", "0", "1"]}],
)
def test_minus_one_is_a_class_if_the_task_names_it(write: Write, fields: dict[str, Any]) -> None:
    found = classes(write, -1, 0, 1, **fields)
    assert found == [fields.get("labels", ["-1"])[0], "0", "1"]


def test_minus_one_may_be_skipped_by_name(write: Write) -> None:
    data = load(str(write("t.jsonl", lines(0, -1.0, 1))), skip_labels=["-1"])
    assert data.train.reports == {"records with a label of task.skip_labels skipped": 1}


def test_a_split_of_unlabelled_records_says_so(write: Write) -> None:
    train, test = write("a.jsonl", lines(0, 1)), write("b.jsonl", lines(-1, -1))
    with pytest.raises(BadInput, match=r"task.test has no example \(2 records with the label -1,"):
        load(str(train), test=str(test))
    fields: dict[str, Any] = {"kind": "regression", "metrics": ["pearson"]}
    train, test = write("a.jsonl", lines(0.5, -1)), write("b.jsonl", lines(-1.0, -1.0))
    assert classes(write, 0.5, -1, **fields) == [0.5, -1.0]
    with pytest.raises(BadInput, match="task.test has the score -1 in every record"):
        load(str(train), test=str(test), **fields)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ((0, 1, True), "line 3 has true or false as its label and .*line 1 a number"),
        ((False, "x", 2.0), "line 1 has true or false as its label and .*line 3 a number"),
        (("a", float("nan")), "line 2 has the number nan as a label in the column label"),
        (("a", float("-inf")), "line 2 has the number -inf as a label"),
        (("a", {"name": "b"}), r"line 2 has an object .*task.columns can name label.name"),
        (("a", ["b"]), "line 2 has a list as a label in the column label"),
        (("a", None), "line 2 has no label in column label"),
        (("a", "  "), "line 2 has no label in column label"),
        (("a", "['b']"), "line 2 has the label .* which spells a list as text"),
        (("a", "[0, 1]"), "line 2 has the label .* which spells a list as text"),
        (("a", '{"b": 1}'), "line 2 has the label .* which spells a list as text"),
    ],
)
def test_what_is_no_class(write: Write, labels: tuple[Any, ...], told: str) -> None:
    with pytest.raises(BadInput, match=rf"t.jsonl {told}"):
        classes(write, *labels)


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ((["a", "b "], []), [("a", "b"), ()]),
        (([27], [2, 3]), [("27",), ("2", "3")]),
        (([1, 2.0], [1.0]), [("1", "2.0"), ("1",)]),
        ((0, 3), [("0",), ("3",)]),  # 0 is a class, and no empty list
        (("a, b,", ""), [("a", "b"), ()]),
        (("0_0,1_1", "0_1,1_0"), [("1",), ("0",)]),
        (([-1], ["x", "y"]), [("x", "y")]),
        (([0, 1], [1], [1, 0]), [("0", "1"), ("1",), ("1", "0")]),
    ],
)
def test_several_classes(write: Write, labels: tuple[Any, ...], want: list[Any]) -> None:
    assert classes(write, *labels, **SEVERAL) == want


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (([0, 0, 1], [1, 0, 0]), "line 1 has a number twice .* zeros and ones"),
        (([0.0, 1.0, 1.0],), "line 1 has a number twice or a fraction among the labels"),
        (([1], [0.25, 0.75]), "line 2 has a number twice or a fraction among the labels"),
        (([0, 1], [1, 0], [0, 1]), r"line 1 and all other records have the list \[0, 1\] or"),
        (([True, False],), "line 1 has true among the labels"),
        ((["a", None],), "line 1 has null among the labels"),
        ((["a", ""],), "line 1 has '' among the labels"),
        (([["a"], ["b"]],), "line 1 has a list among the labels"),
        (([{"name": "a"}],), "line 1 has an object among the labels"),
        ((["a", float("nan")],), "line 1 has the number nan as a label"),
        ((["a", "['b', 'c']"],), "line 1 has the label .* which spells a list as text"),
        ((None, ["a"]), "line 1 has null in the column label, where a list of labels must be"),
        (({"a": True},), "line 1 has an object in the column label"),
        ((True,), "line 1 has true in the column label"),
        (("['a', 'b']",), "line 1 has the label .* which spells a list as text"),
        (("['a' 'b']",), "line 1 has the label .* which spells a list as text"),
        (("[0. 1. 0.]",), "line 1 has the label .* which spells a list as text"),
        (("[]",), "line 1 has the label .* which spells a list as text"),
        (("(0, 1)",), "line 1 has the label .* which spells a list as text"),
        (([-1, 2],), "line 1 has the label -1, which means unlabelled, beside others"),
        (("0_0,1_1", "0_0,1_1,2_0"), r"line 2 numbers the classes 0 to 2 \(3\) .* first record 0"),
        (("0_0,0_1", "0_1,1_0"), "line 2 numbers the classes 0 to 1"),
        (([], []), "task.train has no label at all"),
    ],
)
def test_what_is_no_list_of_classes(write: Write, labels: tuple[Any, ...], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        classes(write, *labels, **SEVERAL)


def test_labels_that_look_like_lists_and_are_none(write: Write) -> None:
    names = ["[UNK]", "(a)", "[A],[B]", "{x", "[-]", "(1)"]
    assert classes(write, *names) == names


def test_a_map_takes_a_number_by_its_value(write: Write) -> None:
    found = classes(write, 1.0, 0, 1, label_map={"1": "yes", "0.0": "no"})
    assert found == ["yes", "no", "yes"]
    assert classes(write, "a ", "b", label_map={" a": "c"}) == ["c", "b"]
