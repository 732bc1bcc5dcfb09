"""Readers of texts and pairs with a label: tables, JSON lines, hub data sets, folders of files.

`records` covers GLUE's tables, BLURB's GAD, BIOSSES, HoC and preprocessed relations, and every JSON
lines file; `folders` is IMDB (one text a file, in a folder named after its label); PubMedQA and
BioASQ have a JSON layout of their own.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bert.tasks.configuration import SplitConfig, TaskConfig
from bert.tasks.examples import Split, TextExample
from bert.tasks.sources import Record, WrongColumns, field, read_json, read_records, read_text
from distributed.errors import BadInput

EMPTY_TEXT = "records with an empty text skipped"
SKIPPED_LABEL = "records with a label of task.skip_labels skipped"
JOINED = "records joined to the text that they belong to"
WRONG_COLUMNS = "records with wrong columns skipped"
# BLUE writes the classes of HoC as 0_0,1_1,...: number of the class, then whether it applies.
_INDEXED_LABELS = re.compile(r"\d+_[01](,\d+_[01])*")


def read_record_split(task: TaskConfig, split: SplitConfig) -> Split:
    """Tables, JSON lines and hub data sets, with the fields that task.columns names."""
    out = Split([])
    examples, documents = [], []
    for source in split.paths:
        for record in read_records(source, header=task.header):
            try:
                if isinstance(record, WrongColumns):
                    raise record
                if not _is_wanted(record, split):
                    continue
                example = _parse(record, task)
                document = _document(record, task)
            except WrongColumns:
                if task.bad_records == "error":
                    raise
                out.reports[WRONG_COLUMNS] += 1
                continue
            if isinstance(example, str):
                out.reports[example] += 1
            else:
                examples.append(example)
                documents.append(document)
    out.examples = examples
    if task.columns.document is not None:
        out.examples = _join(examples, documents)
        out.reports[JOINED] += len(examples) - len(out.examples)
    return out


def read_folder_split(task: TaskConfig, split: SplitConfig) -> Split:
    """FOLDER/LABEL/*.txt for each of task.labels, the layout of IMDB; other folders are left."""
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        for label in task.labels or []:
            files = sorted((path / label).glob("*.txt"))
            if not files:
                raise BadInput(f"{path / label} has no .txt file: task.labels names its folder")
            for file in files:
                text = read_text(file).strip()
                if text:
                    examples.append(TextExample(text, None, _rename(label, task), str(file)))
                else:
                    out.reports[EMPTY_TEXT] += 1
    out.examples = examples
    return out


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
            question = _member(article, "QUESTION", place)
            contexts = _member(article, "CONTEXTS", place)
            label = _rename(str(_member(article, "final_decision", place)), task)
            examples.append(TextExample(str(question), " ".join(contexts), label, place))
    out.examples = examples
    return out


def read_bioasq_split(task: TaskConfig, split: SplitConfig) -> Split:
    """The published JSON {"questions": [...]}: its yes/no questions, snippets joined as context."""
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        for index, question in enumerate(_member(read_json(path), "questions", str(path))):
            place = f"{path} question {index}"
            if _member(question, "type", place) != "yesno":
                out.reports["questions that are not yes/no skipped"] += 1
                continue
            body = str(_member(question, "body", place))
            snippets = [str(s["text"]) for s in _member(question, "snippets", place)]
            answer = _member(question, "exact_answer", place)
            answer = next(iter(answer), None) if isinstance(answer, list) else answer
            if not isinstance(answer, str):
                raise BadInput(f"{place} has no answer in 'exact_answer'")
            label = _rename(answer.lower(), task)
            examples.append(TextExample(body, " ".join(snippets) or None, label, place))
    out.examples = examples
    return out


def _is_wanted(record: Record, split: SplitConfig) -> bool:
    for name, wanted in split.where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if str(field(record, name)) not in map(str, values):
            return False
    return True


def _parse(record: Record, task: TaskConfig) -> TextExample | str:
    """The example, or the reason for skipping it."""
    columns = task.columns
    text = _as_text(field(record, columns.text))
    pair = None if columns.text_pair is None else _as_text(field(record, columns.text_pair))
    raw = field(record, columns.label)
    if not text or pair == "":
        return EMPTY_TEXT
    label: str | float | tuple[str, ...]
    if task.kind == "regression":
        label = _as_number(raw, record)
    elif task.kind == "multi_label":
        label = tuple(_rename(name, task) for name in _label_names(raw, task))
    else:
        if raw is None or str(raw) == "":
            raise BadInput(f"{record.place} has no label in column {columns.label}")
        if str(raw) in task.skip_labels:
            return SKIPPED_LABEL
        label = _rename(str(raw), task)
    return TextExample(text, pair, label, record.place)


def _document(record: Record, task: TaskConfig) -> str:
    """Which text the record is a part of: BLUE numbers an abstract's sentences PMID_s0, PMID_s1."""
    column = task.columns.document
    return "" if column is None else str(field(record, column)).partition("_")[0]


def _join(examples: Sequence[TextExample], documents: Sequence[str]) -> list[TextExample]:
    """One example a document: its texts in the order of the file, with all of their labels."""
    parts: dict[str, list[TextExample]] = {}
    for example, document in zip(examples, documents, strict=True):
        parts.setdefault(document, []).append(example)
    joined = []
    for of_one in parts.values():
        labels = dict.fromkeys(label for e in of_one for label in _labels(e))
        pairs = [e.text_pair for e in of_one if e.text_pair is not None]
        joined.append(
            TextExample(
                " ".join(e.text for e in of_one),
                " ".join(pairs) or None,
                tuple(labels),
                of_one[0].place,
            )
        )
    return joined


def _labels(example: TextExample) -> tuple[str, ...]:
    assert isinstance(example.label, tuple), "multi_label"
    return example.label


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(part).strip() for part in value)
    return "" if value is None else str(value).strip()


def _as_number(value: Any, record: Record) -> float:
    try:
        number = float(value)
        if math.isfinite(number):
            return number
        raise ValueError
    except (TypeError, ValueError):
        reason = f"{record.place} has {value!r} as its score, which is no finite number"
        raise BadInput(reason) from None


def _label_names(value: Any, task: TaskConfig) -> Iterator[str]:
    if isinstance(value, list | tuple):
        yield from map(str, value)
    elif isinstance(value, str) and _INDEXED_LABELS.fullmatch(value):
        yield from (part.split("_")[0] for part in value.split(",") if part.endswith("_1"))
    elif value:
        parts = (part.strip() for part in str(value).split(task.label_separator))
        yield from (part for part in parts if part)


def _rename(label: str, task: TaskConfig) -> str:
    return task.label_map.get(label, label)


def _member(value: Any, name: str, place: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise BadInput(f"{place} has no {name!r}")
    return value[name]
