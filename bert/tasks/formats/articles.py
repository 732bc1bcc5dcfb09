"""Readers of questions about biomedical articles: PubMedQA and BioASQ, each in its own JSON."""

from pathlib import Path
from typing import Any

from bert.tasks.config import SplitConfig, TaskConfig
from bert.tasks.formats.examples import NO_BLANKS, Split, TextExample
from bert.tasks.formats.fields import check_string, check_strings, describe
from bert.tasks.formats.sources import REPEATED, read_json
from distributed.errors import BadInput

NO_YES_NO = "questions that are not yes/no skipped"


def read_pubmedqa_split(task: TaskConfig, split: SplitConfig) -> Split:
    """The published JSON object: PMID -> QUESTION, CONTEXTS, final_decision.

    The answer is read from the question and the contexts; LONG_ANSWER, the abstract's conclusion,
    gives it away and is not read (the reasoning-required setting).
    """
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        articles = read_json(path)
        if not isinstance(articles, dict):
            raise BadInput(f"{path} is not PubMedQA's JSON object of articles by PMID")
        for pmid, article in articles.items():
            place = f"{path} article {pmid}"
            question = _string(article, "QUESTION", place)
            contexts = check_strings(_member(article, "CONTEXTS", place), place, "'CONTEXTS'")
            label = _read_label(_string(article, "final_decision", place), out)
            if not label:
                raise BadInput(f"{place} has no label in 'final_decision'")
            label = task.label_map.get(label, label)
            examples.append(TextExample(question, " ".join(contexts), label, place))
    out.examples = examples
    return out


def read_bioasq_split(task: TaskConfig, split: SplitConfig) -> Split:
    """The published JSON {"questions": [...]}: its yes/no questions, snippets joined as context."""
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        for index, question in enumerate(_list(read_json(path), "questions", str(path))):
            place = f"{path} question {index}"
            if _string(question, "type", place) != "yesno":
                out.reports[NO_YES_NO] += 1
                continue
            body = _string(question, "body", place)
            snippets = _list(question, "snippets", place)
            texts = [_string(snippet, "text", f"{place}, a snippet,") for snippet in snippets]
            label = _read_answer(question, place, out)
            label = task.label_map.get(label, label)
            examples.append(TextExample(body, " ".join(texts) or None, label, place))
    out.examples = examples
    return out


def _read_label(label: str, out: Split) -> str:
    if label != label.strip():
        out.newer_rules.add(NO_BLANKS)
    return label.strip()


def _read_answer(question: Any, place: str, out: Split) -> str:
    """The answer to a yes/no question: a string, or a list that has it once or more."""
    answer = _member(question, "exact_answer", place)
    given = answer if isinstance(answer, list) else [answer]
    answers = {_read_label(a, out).lower() for a in given if isinstance(a, str) and a.strip()}
    if len(answers) != 1 or not all(isinstance(a, str) for a in given):
        reason = "no answer" if not answers else "no single answer"
        raise BadInput(f"{place} has {reason} in 'exact_answer'")
    return answers.pop()


def _string(value: Any, name: str, place: str) -> str:
    return check_string(_member(value, name, place), place, repr(name))


def _list(value: Any, name: str, place: str) -> list[Any]:
    found = _member(value, name, place)
    if not isinstance(found, list):
        raise BadInput(f"{place} has {describe(found)} in {name!r}, where a list must be")
    return found


def _member(value: Any, name: str, place: str) -> Any:
    if value is REPEATED:
        raise BadInput(f"{place} stands there twice, with two values: remove one")
    if not isinstance(value, dict) or name not in value:
        raise BadInput(f"{place} has no {name!r}")
    if value[name] is REPEATED:
        raise BadInput(f"{place} has {name!r} twice, with two values: remove one")
    return value[name]
