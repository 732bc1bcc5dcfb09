"""What the tests of the readers share: a task of one file, and its examples in short."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert.tasks.config import TaskConfig
from bert.tasks.formats.examples import TextExample, TokenExample
from bert.tasks.splits import TaskData, load_task

Write = Callable[[str, str], Path]
TOKENS = {"kind": "tokens", "format": "tags", "metrics": ["entity_f1"]}
SQUAD = {"kind": "question_answering", "format": "squad", "metrics": ["answer_f1"]}
RELATION = {"kind": "relation", "metrics": ["micro_f1"]}
SEVERAL = {"kind": "multi_label", "metrics": ["micro_f1"]}


def load(train: Any, **fields: Any) -> TaskData:
    defaults = {"kind": "classification", "metrics": ["accuracy"], "train": train, "dev": train}
    return load_task(TaskConfig.model_validate({**defaults, **fields}))


def texts(data: TaskData) -> list[tuple[str, str | None, Any]]:
    examples = data.train.examples
    return [(e.text, e.text_pair, e.label) for e in examples if isinstance(e, TextExample)]


def tags(data: TaskData) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(e.words, e.tags) for e in data.train.examples if isinstance(e, TokenExample)]
