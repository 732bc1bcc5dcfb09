"""Reader of SQuAD v1.1's JSON: articles, their paragraphs, questions whose answers are spans."""

import re
from pathlib import Path
from typing import Any

from bert.tasks.configuration import SplitConfig, TaskConfig
from bert.tasks.examples import QuestionExample, Split
from bert.tasks.sources import read_json
from distributed.errors import BadInput

MOVED = "answers found elsewhere in the context than their offset says"
LOST = "answers that are not in the context left out"
UNANSWERED = "questions without an answer skipped"


def read_squad_split(task: TaskConfig, split: SplitConfig) -> Split:
    """Every question with all annotators' answers; `where: {title: [...]}` picks articles."""
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        data = read_json(path)
        if not isinstance(data, dict) or not isinstance(data.get("data"), list):
            raise BadInput(f"{path} is not in SQuAD's layout: it has no list 'data'")
        for number, article in enumerate(data["data"], start=1):
            if not isinstance(article, dict):
                raise BadInput(f"{path} is not in SQuAD's layout: article {number} is no object")
            if not _is_wanted(article, split):
                continue
            for paragraph in _objects(article, "paragraphs", f"{path} article {number}"):
                for question in _objects(paragraph, "qas", f"{path} article {number}"):
                    place = f"{path} question {question.get('id')}"
                    example = _read_question(question, paragraph, out, place)
                    if example is None:
                        out.reports[UNANSWERED] += 1
                    else:
                        examples.append(example)
    out.examples = examples
    return out


def _is_wanted(article: dict[str, Any], split: SplitConfig) -> bool:
    for name, wanted in split.where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if article.get(name) not in values:
            return False
    return True


def _objects(parent: dict[str, Any], name: str, place: str) -> list[dict[str, Any]]:
    found = parent.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadInput(f"{place} is not in SQuAD's layout: {name} is no list of objects")
    return found


def _nearest(context: str, answer: str, start: int) -> int:
    """Where `answer` is in `context`, as near to `start` as can be; -1 if nowhere."""
    places = [match.start() for match in re.finditer(f"(?={re.escape(answer)})", context)]
    return min(places, key=lambda place: abs(place - start), default=-1) if answer else -1


def _read_question(
    question: dict[str, Any], paragraph: dict[str, Any], out: Split, place: str
) -> QuestionExample | None:
    try:
        context, text, identity = paragraph["context"], question["question"], question["id"]
        given = [(a["text"], int(a["answer_start"])) for a in question["answers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{place} is not in SQuAD's layout: {error} is missing or wrong") from None
    answers, starts = [], []
    for answer, start in given:
        if context[start : start + len(answer)] != answer:
            start = _nearest(context, answer, start)
            out.reports[LOST if start < 0 else MOVED] += 1
        if start >= 0 and answer:
            answers.append(answer)
            starts.append(start)
    if not answers:
        return None
    return QuestionExample(identity, text, context, tuple(answers), tuple(starts), place)
