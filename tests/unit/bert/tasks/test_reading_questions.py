"""SQuAD: offsets and answers compared, and what is not in its layout."""

import json
from typing import Any

import pytest

from bert.tasks.examples import QuestionExample
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
