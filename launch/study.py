"""A comparison of models on tasks: its configuration, and which runs it needs.

grid      every model x task x learning rate, on the first grid_seeds seeds; test left alone
choice    for each model and task the rate with the best mean dev score
final     all seeds at that rate, and for a model with a twin at the twin's rate too, which is
          the sparse model with the dense one's hyperparameters; test scored once
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from distributed.config import Config
from launch import config_loading
from launch.configuration import check_name
from launch.finetune_configuration import FinetuneConfig, resolve_finetune_paths


class StudyModel(Config):
    """A model to compare."""

    init_from: Path
    twin: str | None = Field(None, description="the model that this one is measured against")


class StudyTask(Config):
    """A task to compare on."""

    config: Path
    overrides: list[str] = Field(default_factory=list, description="field=value, as in finetune")
    published: dict[str, float] = Field(
        default_factory=dict, description="who -> score in percent, shown as published, not ours"
    )


class StudyConfig(Config):
    """A study, complete."""

    name: str
    runs_dir: Path = Path("runs")
    models: dict[str, StudyModel] = Field(..., min_length=1)
    tasks: dict[str, StudyTask] = Field(..., min_length=1)
    seeds: list[int] = Field([1, 2, 3], min_length=1)
    learning_rates: list[float] = Field(..., min_length=1)
    grid_seeds: int = Field(1, ge=1, description="of the seeds, how many choose the learning rate")
    overrides: list[str] = Field(default_factory=list, description="field=value, for all tasks")
    parallel: int = Field(1, ge=1, description="runs at once")
    gpus: list[int] = Field(
        default_factory=list, description="numbers of the GPUs that runs at once are dealt out to"
    )

    _check_name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, model in self.models.items():
            if model.twin is not None and model.twin not in self.models:
                raise ValueError(f"models.{name}.twin is {model.twin}, which is no model here")
        for name in (*self.models, *self.tasks):
            check_name(name)
        # As they stand in the names of the runs' folders.
        if len({f"{rate:g}" for rate in self.learning_rates}) < len(self.learning_rates):
            raise ValueError("learning_rates has a rate twice")
        if self.grid_seeds > len(self.seeds):
            raise ValueError(f"grid_seeds ({self.grid_seeds}) is above the number of seeds")
        return self

    @property
    def folder(self) -> Path:
        """Where runs and tables of the study go."""
        return self.runs_dir / self.name


@dataclass(frozen=True)
class StudyRun:
    """One `sparsebert finetune`: a model on a task at one rate, for some seeds."""

    model: str
    task: str
    learning_rate: float
    seeds: tuple[int, ...]
    score_test: bool

    @property
    def name(self) -> str:
        """Of the run's folder in the study's."""
        return f"{self.task}.{self.model}.lr{self.learning_rate:g}"


Scores = Callable[[StudyRun], "list[dict[str, Any]] | None"]  # results of all its seeds, or None


def finetune_overrides(study: StudyConfig, run: StudyRun) -> list[str]:
    """The run as field=value over its task's file; later ones win."""
    return [
        *study.overrides,
        *study.tasks[run.task].overrides,
        f"name={run.name}",
        f"model.init_from={study.models[run.model].init_from}",
        f"seeds={list(run.seeds)}",
        f"train.learning_rate={run.learning_rate:g}",
        f"score_test={str(run.score_test).lower()}",
        f"launch.runs_dir={study.folder}",
    ]


def load_finetune(study: StudyConfig, run: StudyRun) -> FinetuneConfig:
    """The run's configuration, validated."""
    file = study.tasks[run.task].config
    loaded = config_loading.load(file, finetune_overrides(study, run), FinetuneConfig)
    return resolve_finetune_paths(loaded)


def grid_runs(study: StudyConfig) -> Iterator[StudyRun]:
    """What chooses the learning rates; nothing where there is only one."""
    if len(study.learning_rates) == 1:
        return
    seeds = tuple(study.seeds[: study.grid_seeds])
    for task in study.tasks:
        for model in study.models:
            for rate in study.learning_rates:
                yield StudyRun(model, task, rate, seeds, score_test=False)


def choose_rates(study: StudyConfig, dev_scores: Mapping[StudyRun, float]) -> dict[str, Any]:
    """Task -> model -> the rate with the best dev score; the smaller of equal ones."""
    if len(study.learning_rates) == 1:
        return {t: dict.fromkeys(study.models, study.learning_rates[0]) for t in study.tasks}
    chosen: dict[str, dict[str, float]] = {}
    for task in study.tasks:
        for model in study.models:
            tried = [r for r in dev_scores if (r.task, r.model) == (task, model)]
            best = min(tried, key=lambda r: (-dev_scores[r], r.learning_rate))
            chosen.setdefault(task, {})[model] = best.learning_rate
    return chosen


def final_runs(study: StudyConfig, chosen: Mapping[str, Mapping[str, float]]) -> list[StudyRun]:
    """What is scored on test: each model at its own rate, and at its twin's."""
    runs: dict[StudyRun, None] = {}
    for task in study.tasks:
        for name, model in study.models.items():
            owners = [name] if model.twin is None else [name, model.twin]
            for owner in owners:
                rate = chosen[task][owner]
                runs[StudyRun(name, task, rate, tuple(study.seeds), score_test=True)] = None
    return list(runs)


def mean_dev_score(results: list[dict[str, Any]]) -> float:
    """Of the main metric, over seeds."""
    return float(np.mean([r["dev"][r["main_metric"]] for r in results]))
