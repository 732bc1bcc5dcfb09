"""A task, as its YAML file describes it: files, their format, labels, metrics, lengths, training.

Imports no torch, as no configuration does.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bert.corpora.hub import HUB_PREFIX
from distributed.config import Config
from training.config import TrainConfig, UpdateConfig

Kind = Literal[
    "classification", "multi_label", "regression", "relation", "tokens", "question_answering"
]
Format = Literal[
    "records", "folders", "tags", "squad", "chemprot", "ddi", "marked", "pubmedqa", "bioasq"
]
MetricName = Literal[
    "accuracy",
    "f1",
    "macro_f1",
    "micro_f1",
    "positive_micro_f1",
    "matthews",
    "pearson",
    "spearman",
    "entity_f1",
    "macro_word_f1",
    "exact_match",
    "answer_f1",
]

_TEXT_METRICS = {"accuracy", "f1", "macro_f1", "micro_f1", "matthews"}
METRICS_OF: dict[Kind, set[str]] = {
    "classification": _TEXT_METRICS,
    "relation": _TEXT_METRICS | {"positive_micro_f1"},
    "multi_label": {"micro_f1", "macro_f1"},
    "regression": {"pearson", "spearman"},
    "tokens": {"entity_f1", "macro_word_f1"},
    "question_answering": {"exact_match", "answer_f1"},
}
_FORMATS_OF: dict[Kind, set[str]] = {
    "classification": {"records", "folders", "pubmedqa", "bioasq"},
    "relation": {"records", "marked", "chemprot", "ddi"},
    "multi_label": {"records"},
    "regression": {"records"},
    "tokens": {"tags"},
    "question_answering": {"squad"},
}


_READ_WHERE = {"records", "marked", "squad"}
_READ_RECORDS = {"records", "marked"}  # rows with named fields


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


def _as_split(value: Any) -> Any:
    return value if isinstance(value, dict) or value is None else {"paths": value}


Scalar = str | int | float | bool


class SplitConfig(Config):
    """Where a split is: files, folders, or hub:NAME[:CONFIG[:SPLIT]] for datasets.load_dataset."""

    short_form: ClassVar[str] = "paths"  # what a path or a list in place of the section is

    paths: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
    where: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="keep records whose fields have one of these values"
    )

    def resolved(self) -> Self:
        """The same with absolute paths; data sets of the hub have none."""
        paths = [
            path if path.startswith(HUB_PREFIX) else os.path.abspath(os.path.expanduser(path))
            for path in self.paths
        ]
        return self.model_copy(update={"paths": paths})


OneSplit = Annotated[SplitConfig, BeforeValidator(_as_split)]
MaybeSplit = Annotated[SplitConfig | None, BeforeValidator(_as_split)]


class Columns(Config):
    """Names of a record's fields; in a table without a header their numbers from 0."""

    text: str = Field("sentence", coerce_numbers_to_str=True)
    text_pair: str | None = Field(None, coerce_numbers_to_str=True)
    label: str = Field("label", coerce_numbers_to_str=True)
    document: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="multi_label: rows alike here, up to an underscore, are one text",
    )


class TaskConfig(Config):
    """One task. Metrics: the first decides between checkpoints and learning rates."""

    kind: Kind
    format: Format = "records"
    train: OneSplit
    dev: MaybeSplit = Field(None, description="decides between checkpoints")
    test: MaybeSplit = Field(None, description="scored once, at the end")
    dev_fraction: float | None = Field(
        None, gt=0, lt=0.5, description="share of the training examples that becomes dev"
    )
    max_train_examples: int | None = Field(
        None, ge=1, description="train on a part, drawn by a hash of the examples"
    )
    columns: Columns = Columns.model_validate({})
    header: bool = Field(True, description="whether a table's first line names its columns")
    quotes: bool | None = Field(
        None, description="whether cells between tabs may be in quotes; null decides from the file"
    )
    labels: list[str] | None = Field(None, description="null takes those of the training split")
    label_map: dict[str, str] = Field(default_factory=dict, description="label -> its new name")
    skip_labels: list[str] = Field(
        default_factory=list, description="records with one of these labels are skipped and counted"
    )
    label_separator: str = Field(",", min_length=1, description="of multi_label fields")
    negative_labels: list[str] = Field(
        default_factory=list, description="classes that mean no relation, for positive_micro_f1"
    )
    bad_records: Literal["error", "skip"] = Field(
        "error", description="skip: records with wrong columns are skipped and counted"
    )
    tag_scheme: Literal["bio", "iob1", "io"] = "bio"
    merge_types: str | None = Field(None, description="one name for all entity types, as in BLURB")
    entities: Literal["markers", "dummies"] = Field(
        "dummies", description="relation: words around the two entities, or a word in their place"
    )
    entity_types: tuple[str, str] = Field(
        ("GENE", "CHEMICAL"), description="format marked: what << >> and [[ ]] stand for"
    )
    metrics: list[MetricName] = Field(..., min_length=1)
    max_seq_len: int = Field(128, ge=8, le=512)
    stride_tokens: int = Field(
        128, ge=1, description="tokens that two windows of a long text share (questions, words)"
    )
    max_answer_tokens: int = Field(30, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format not in _FORMATS_OF[self.kind]:
            raise ValueError(
                f"task.format {self.format} does not hold {self.kind} tasks: choose one of "
                f"{', '.join(sorted(_FORMATS_OF[self.kind]))}"
            )
        for name in self.metrics:
            if name not in METRICS_OF[self.kind]:
                raise ValueError(
                    f"task.metrics has {name}, which is not for {self.kind}: choose from "
                    f"{', '.join(sorted(METRICS_OF[self.kind]))}"
                )
        if (self.dev is None) == (self.dev_fraction is None):
            raise ValueError("set one of task.dev and task.dev_fraction: dev chooses checkpoints")
        self._check_that_all_is_read()
        if "positive_micro_f1" in self.metrics and not self.negative_labels:
            raise ValueError("task.metrics positive_micro_f1 needs task.negative_labels")
        names = [label.strip() for label in self.labels or ()]
        if len(set(names)) != len(names):
            raise ValueError("task.labels names a label twice")
        return self

    def _check_that_all_is_read(self) -> None:
        """A setting that the format's reader does not look at would be dropped in silence."""
        for name, split in (("train", self.train), ("dev", self.dev), ("test", self.test)):
            if split is not None and split.where and self.format not in _READ_WHERE:
                raise ValueError(
                    f"task.{name}.where is not for task.format {self.format}: give each split "
                    "files of its own"
                )
            is_hub = split is not None and any(path.startswith(HUB_PREFIX) for path in split.paths)
            if is_hub and self.format not in _READ_RECORDS:
                raise ValueError(
                    f"task.{name} is a hub data set, which task.format records and marked read and "
                    f"{self.format} does not: give files in its published layout"
                )
        if self.format == "folders" and not self.labels:
            raise ValueError("task.format folders needs task.labels, the names of the folders")
        if self.quotes is not None and self.format not in _READ_RECORDS:
            raise ValueError(f"task.quotes is not for task.format {self.format}")
        if any(label != label.strip() for label in self.skip_labels):
            raise ValueError(
                "task.skip_labels has a label with blanks at its ends, which labels lose when they "
                "are read: remove the blanks"
            )
        if self.skip_labels and (
            self.format not in ("records", "marked") or self.kind in ("multi_label", "regression")
        ):
            raise ValueError("task.skip_labels is for records with one label each")
        if self.columns.document is not None and (
            self.format != "records" or self.kind != "multi_label"
        ):
            raise ValueError("task.columns.document is for records of multi_label tasks")
        if self.label_map and self.format in ("tags", "squad"):
            raise ValueError(f"task.label_map is not for task.format {self.format}")

    @property
    def main_metric(self) -> str:
        """What decides between checkpoints and learning rates, on dev; larger is better."""
        return self.metrics[0]


class FinetuneTrainConfig(UpdateConfig):
    """How a model is fine-tuned; the defaults are BERT's and BLURB's (arXiv 2007.15779)."""

    epochs: float = Field(3, gt=0)
    global_batch_rows: int = Field(32, ge=1, description="rows of one step, over all ranks")
    micro_batch_rows: int = Field(32, ge=1, description="rows of one forward on one rank")
    learning_rate: float = Field(3e-5, gt=0)
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    hidden_dropout: float = Field(0.1, ge=0, lt=1)
    log_interval_steps: int = Field(50, ge=1)
    evaluations_per_epoch: int = Field(1, ge=1, description="on dev; each saves a checkpoint")
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations on dev without a better one"
    )

    def plan(self, num_rows: int) -> TrainConfig:
        """The same in steps, for a training split of `num_rows` rows."""
        total_steps = max(1, round(self.epochs * num_rows / self.global_batch_rows))
        fields = self.model_dump(
            exclude={"epochs", "warmup_fraction", "evaluations_per_epoch", "patience"}
        )
        return TrainConfig(
            **fields,
            total_steps=total_steps,
            warmup_steps=round(self.warmup_fraction * total_steps),
        )

    def evaluation_interval_steps(self, num_rows: int) -> int:
        """Steps between two evaluations."""
        per_epoch = num_rows / self.global_batch_rows
        return max(1, math.ceil(per_epoch / self.evaluations_per_epoch))
