"""Reader of SQuAD v1.1's JSON: articles, their paragraphs, questions whose answers are spans."""

from pathlib import Path
from typing import Any

from bert.tasks.config import SplitConfig, TaskConfig
from bert.tasks.formats.examples import NO_CONTRADICTION, TEXT_COUNTS, QuestionExample, Split
from bert.tasks.formats.fields import check_string, describe
from bert.tasks.formats.selection import Selection
from bert.tasks.formats.sources import REPEATED, read_json
from bert.tasks.offsets import find_text
from distributed.errors import BadInput

MOVED = "answers found elsewhere in the context than their offset says"
LOST = "answers that are not in the context left out"
UNANSWERED = "questions without an answer skipped"
CONTRADICTED = "questions marked is_impossible that have answers left out"


def read_squad_split(task: TaskConfig, split: SplitConfig) -> Split:
    """Every question with all annotators' answers; `where: {title: [...]}` picks articles."""
    out = Split([])
    selection = Selection(split, out)
    examples = []
    for path in map(Path, split.paths):
        data = read_json(path)
        if not isinstance(data, dict) or not isinstance(data.get("data"), list):
            raise BadInput(f"{path} is not in SQuAD's layout: it has no list 'data'")
        for number, article in enumerate(data["data"], start=1):
            if not isinstance(article, dict):
                raise BadInput(f"{path} is not in SQuAD's layout: article {number} is no object")
            where = f"{path} article {number}"
            if not selection.takes(article.get, where):
                continue
            for paragraph in _objects(article, "paragraphs", where):
                for question in _objects(paragraph, "qas", where):
                    place = f"{path} question {question.get('id')}"
                    example = _read_question(question, paragraph, out, place)
                    if example is not None:
                        examples.append(example)
    selection.report()
    out.examples = examples
    return out


def _objects(parent: dict[str, Any], name: str, place: str) -> list[dict[str, Any]]:
    found = parent.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadInput(f"{place} is not in SQuAD's layout: {name} is no list of objects")
    return found


def _read_question(
    question: dict[str, Any], paragraph: dict[str, Any], out: Split, place: str
) -> QuestionExample | None:
    """The question; None, and counted, if it has no answer in the context."""
    for fields, name in ((paragraph, "context"), (question, "question"), (question, "answers")):
        if name not in fields or fields[name] is REPEATED:
            wrong = "twice, with two values" if name in fields else "missing"
            raise BadInput(f"{place} is not in SQuAD's layout: {name!r} is {wrong}")
    context = check_string(paragraph["context"], place, "'context'")
    text = check_string(question["question"], place, "'question'")
    if not isinstance(question.get("id"), str | int):
        raise BadInput(f"{place} is not in SQuAD's layout: 'id' is missing or wrong")
    given = [_read_answer(answer, place) for answer in _objects(question, "answers", place)]
    if given and question.get("is_impossible") is True:
        out.reports[CONTRADICTED] += 1
        out.newer_rules.add(NO_CONTRADICTION)
        return None
    answers, starts = [], []
    for answer, start in given:
        if start < 0:
            out.newer_rules.add(TEXT_COUNTS)  # Python counted such an offset from the end
        if not answer or start < 0 or context[start : start + len(answer)] != answer:
            start = find_text(context, answer, start)
            out.reports[LOST if start < 0 else MOVED] += 1
        if start >= 0:
            answers.append(answer)
            starts.append(start)
    if not answers:
        out.reports[UNANSWERED] += 1
        return None
    return QuestionExample(question["id"], text, context, tuple(answers), tuple(starts), place)


def _read_answer(answer: dict[str, Any], place: str) -> tuple[str, int]:
    for name in ("text", "answer_start"):
        if name not in answer:
            raise BadInput(f"{place} is not in SQuAD's layout: {name!r} is missing")
    start = answer["answer_start"]
    if (isinstance(start, str) and start.isdecimal()) or (
        isinstance(start, float) and start.is_integer()
    ):
        start = int(start)
    if isinstance(start, bool) or not isinstance(start, int):
        raise BadInput(f"{place} has {describe(start)} as 'answer_start', where an offset must be")
    return check_string(answer["text"], place, "an answer's 'text'"), start
