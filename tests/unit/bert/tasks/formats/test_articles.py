"""PubMedQA and BioASQ in the layouts in which they are published."""

import json
from typing import Any

import pytest

from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import Write, load, texts


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


ARTICLE = {"QUESTION": "Q?", "CONTEXTS": ["a", "b"], "final_decision": "no"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"CONTEXTS": None}, "article 1 has null in 'CONTEXTS', where a list of texts must be"),
        ({"CONTEXTS": "abc"}, "article 1 has 'abc' in 'CONTEXTS', where a list of texts"),
        ({"CONTEXTS": [["a"]]}, "article 1 has a list among the texts of 'CONTEXTS'"),
        ({"CONTEXTS": {"contexts": ["a"]}}, "article 1 has an object in 'CONTEXTS'"),
        ({"QUESTION": None}, "article 1 has null in 'QUESTION', where a text must be"),
        ({"final_decision": True}, "article 1 has true in 'final_decision'"),
        ({"final_decision": ["no"]}, "article 1 has a list in 'final_decision'"),
        ({"final_decision": " "}, "article 1 has no label in 'final_decision'"),
    ],
)
def test_articles_of_other_types(write: Write, fields: dict[str, Any], told: str) -> None:
    articles = {"0": {**ARTICLE, "final_decision": "yes "}, "1": ARTICLE}
    data = load(str(write("p.json", json.dumps(articles))), format="pubmedqa")
    assert data.labels == ("no", "yes")
    articles["1"] = {**ARTICLE, **fields}
    with pytest.raises(BadInput, match=f"p.json {told}"):
        load(str(write("p.json", json.dumps(articles))), format="pubmedqa")


def test_an_article_that_is_there_twice(write: Write) -> None:
    other = json.dumps({**ARTICLE, "final_decision": "yes"})
    with pytest.raises(BadInput, match="p.json article 1 stands there twice, with two values"):
        load(
            str(write("p.json", f'{{"1": {json.dumps(ARTICLE)}, "1": {other}}}')),
            format="pubmedqa",
        )


QUESTION = {"type": "yesno", "body": "B?", "snippets": [{"text": "s"}], "exact_answer": "no"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"snippets": None}, "question 1 has null in 'snippets', where a list must be"),
        ({"snippets": ["s"]}, "question 1, a snippet, has no 'text'"),
        ({"snippets": [{"text": None}]}, "question 1, a snippet, has null in 'text'"),
        ({"body": ["B"]}, "question 1 has a list in 'body'"),
        ({"exact_answer": ["yes", "no"]}, "question 1 has no single answer in 'exact_answer'"),
        ({"exact_answer": True}, "question 1 has no answer in 'exact_answer'"),
        ({"exact_answer": [["no"]]}, "question 1 has no answer in 'exact_answer'"),
        ({"type": None}, "question 1 has null in 'type'"),
    ],
)
def test_questions_of_other_types(write: Write, fields: dict[str, Any], told: str) -> None:
    questions = [{**QUESTION, "exact_answer": ["Yes ", "yes"]}, QUESTION]
    data = load(str(write("b.json", json.dumps({"questions": questions}))), format="bioasq")
    assert data.labels == ("no", "yes")
    questions[1] = {**QUESTION, **fields}
    with pytest.raises(BadInput, match=f"b.json {told}"):
        load(str(write("b.json", json.dumps({"questions": questions}))), format="bioasq")


def test_questions_that_are_no_list(write: Write) -> None:
    with pytest.raises(BadInput, match="b.json has null in 'questions', where a list must be"):
        load(str(write("b.json", '{"questions": null}')), format="bioasq")
