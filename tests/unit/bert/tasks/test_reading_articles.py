"""PubMedQA and BioASQ in the layouts in which they are published."""

import json

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
