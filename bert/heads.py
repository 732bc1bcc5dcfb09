"""What stands on an exported encoder, in Hugging Face's words: its class, its labels, its use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)


@dataclass(frozen=True)
class Head:
    """A class of transformers' models and what its configuration must say."""

    model_class: Any
    auto_class: str
    pipeline_tag: str
    is_pretraining: bool = False
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def config_fields(self) -> dict[str, Any]:
        """Fields of the Hugging Face configuration."""
        fields: dict[str, Any] = {"architectures": [self.model_class.__name__]}
        if self.labels:
            fields["id2label"] = dict(enumerate(self.labels))
            fields["label2id"] = {label: i for i, label in enumerate(self.labels)}
        if self.problem_type is not None:
            fields["problem_type"] = self.problem_type
        return fields


MASKED_LM = Head(BertForMaskedLM, "AutoModelForMaskedLM", "fill-mask", is_pretraining=True)


def task_head(kind: str, labels: Sequence[str]) -> Head:
    """The head of a task of that kind (bert.tasks.config.Kind)."""
    if kind == "question_answering":
        return Head(BertForQuestionAnswering, "AutoModelForQuestionAnswering", "question-answering")
    if kind == "tokens":
        name = "AutoModelForTokenClassification"
        tag = "token-classification"
        return Head(BertForTokenClassification, name, tag, labels=tuple(labels))
    problem = {"regression": "regression", "multi_label": "multi_label_classification"}
    return Head(
        BertForSequenceClassification,
        "AutoModelForSequenceClassification",
        "text-classification",
        labels=tuple(labels) or ("score",),
        problem_type=problem.get(kind, "single_label_classification"),
    )
