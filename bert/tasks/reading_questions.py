"""Reader of SQuAD v1.1's JSON: articles, their paragraphs, questions whose answers are spans."""

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
        for article in data["data"]:
            if not _is_wanted(article, split):
                continue
            for paragraph in article.get("paragraphs", []):
                for question in paragraph.get("qas", []):
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
            start = context.find(answer)
            out.reports[LOST if start < 0 else MOVED] += 1
        if start >= 0 and answer:
            answers.append(answer)
            starts.append(start)
    if not answers:
        return None
    return QuestionExample(identity, text, context, tuple(answers), tuple(starts), place)
