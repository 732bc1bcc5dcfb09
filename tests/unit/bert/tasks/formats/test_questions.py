"""SQuAD: offsets and answers compared, and what is not in its layout."""

import json
from typing import Any

import pytest

from bert.tasks.formats.examples import QuestionExample
from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import SQUAD, Write, load


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


def test_an_answer_is_found_where_it_is_nearest(write: Write) -> None:
    context = "Rome was Rome and stayed Rome."
    moved = {"id": "1", "question": "Q", "answers": [{"text": "Rome", "answer_start": 26}]}
    paragraph = {"context": context, "qas": [moved]}
    file = write("s.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (example,) = load(str(file), **SQUAD).train.examples
    assert isinstance(example, QuestionExample) and example.answer_starts == (25,)


def question(**fields: Any) -> dict[str, Any]:
    answers = [{"text": "Denver", "answer_start": 15}]
    return {"id": "1", "question": "Where?", "answers": answers, **fields}


@pytest.mark.parametrize(
    ("start", "found"),
    [(15, 15), (14, 15), ("15", 15), (15.0, 15), (22, 27), (26, 27), (-1, 15), (999, 27)],
)
def test_where_an_answer_stands(write: Write, start: Any, found: int) -> None:
    """Worked out by hand: Denver is at 15 and 27 of the context."""
    given = question(answers=[{"text": "Denver", "answer_start": start}])
    data = load(str(write("s.json", squad(given))), **SQUAD)
    (example,) = data.train.examples
    assert isinstance(example, QuestionExample) and example.answer_starts == (found,)
    assert data.train.reports.total() == (int(start) != found)


def test_an_offset_from_the_end_is_no_offset(write: Write) -> None:
    """-6 would be "happy." to Python, and a token before the text to the model."""
    given = question(answers=[{"text": "happy", "answer_start": -6}])
    (example,) = load(str(write("s.json", squad(given))), **SQUAD).train.examples
    assert isinstance(example, QuestionExample) and example.answer_starts == (37,)


def test_version_2(write: Write) -> None:
    """Unanswerable questions are skipped; one that says so and has an answer is set aside."""
    unanswerable = question(id="2", answers=[], is_impossible=True)
    both = question(id="3", is_impossible=True)
    empty = question(id="4", answers=[{"text": "", "answer_start": 0}])
    answered = question(is_impossible=False)
    file = write("s.json", squad(answered, unanswerable, both, empty))
    data = load(str(file), **SQUAD)
    assert len(data.train.examples) == 1
    assert data.train.reports == {
        "questions without an answer skipped": 2,
        "questions marked is_impossible that have answers left out": 1,
        "answers that are not in the context left out": 1,
    }


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"question": None}, "question 1 has null in 'question', where a text must be"),
        ({"question": ["Q"]}, "question 1 has a list in 'question'"),
        ({"answers": None}, "question 1 is not in SQuAD's layout: answers is no list of objects"),
        ({"answers": {"text": ["a"]}}, "answers is no list of objects"),
        ({"answers": ["Denver"]}, "answers is no list of objects"),
        ({"answers": [{"text": 5, "answer_start": 0}]}, "the number 5 in an answer's 'text'"),
        ({"answers": [{"text": "a", "answer_start": True}]}, "has true as 'answer_start'"),
        ({"answers": [{"text": "a", "answer_start": 1.5}]}, "the number 1.5 as 'answer_start'"),
        ({"answers": [{"text": "a", "answer_start": None}]}, "has null as 'answer_start'"),
        ({"id": None}, "'id' is missing or wrong"),
    ],
)
def test_fields_of_other_types(write: Write, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        load(str(write("s.json", squad(question(**fields)))), **SQUAD)


@pytest.mark.parametrize(
    ("article", "told"),
    [
        ({"paragraphs": [{"context": None, "qas": [question()]}]}, "null in 'context'"),
        ({"paragraphs": [{"qas": [question()]}]}, "'context' is missing"),
        ({"paragraphs": [{"context": "c", "questions": []}]}, "qas is no list of objects"),
        ({"paragraph": []}, "paragraphs is no list of objects"),
    ],
)
def test_layouts_that_are_nearly_squads(write: Write, article: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        load(str(write("s.json", json.dumps({"data": [article]}))), **SQUAD)
