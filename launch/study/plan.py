"""A comparison of models on tasks: its configuration, and which runs it needs.

grid      every model x task x learning rate, on the first grid_seeds seeds; test left alone
choice    for each model and task the rate with the best mean dev score
final     all seeds at that rate, and for a model with a twin at the twin's rate too, which is
          the sparse model with the dense one's hyperparameters; test scored once

A model with `distillation` comes after the others: its teacher on a task is its twin's final run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from bert.config import SoftLabelsConfig
from bert.tasks.finetune_config import FinetuneConfig
from distributed.config import Config
from launch import config_loading
from training.config import check_name


class StudyModel(Config):
    """A model to compare."""

    init_from: Path
    twin: str | None = Field(None, description="the model that this one is measured against")
    distillation: SoftLabelsConfig | None = Field(
        None,
        description="learn each task from the twin too: from its final run, of the first seed",
    )


class StudyTask(Config):
    """A task to compare on."""

    config: Path
    overrides: list[str] = Field(default_factory=list, description="field=value, as in finetune")
    learning_rates: list[float] | None = Field(
        None,
        min_length=1,
        description="its own grid, as where dev chose the end of the study's for one of the models",
    )
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
            if model.distillation is not None:
                if model.twin is None:
                    raise ValueError(f"models.{name}.distillation needs a twin, its teacher")
                if self.models[model.twin].distillation is not None:
                    raise ValueError(
                        f"models.{name}.twin is {model.twin}, which has distillation itself: name "
                        "a model that learns from the labels alone"
                    )
        for name in (*self.models, *self.tasks):
            check_name(name)
        for task in self.tasks:  # as they stand in the names of the runs' folders
            if len({f"{rate:g}" for rate in self.grid(task)}) < len(self.grid(task)):
                raise ValueError(f"learning_rates of {task} has a rate twice")
        if self.grid_seeds > len(self.seeds):
            raise ValueError(f"grid_seeds ({self.grid_seeds}) is above the number of seeds")
        return self

    @property
    def folder(self) -> Path:
        """Where runs and tables of the study go."""
        return self.runs_dir / self.name

    def grid(self, task: str) -> list[float]:
        """The learning rates to choose from on a task."""
        return self.tasks[task].learning_rates or self.learning_rates

    @property
    def stages(self) -> list[list[str]]:
        """The models in the order in which they can be fine-tuned: teachers before students."""
        students = [name for name, model in self.models.items() if model.distillation]
        others = [name for name in self.models if name not in students]
        return [others, students] if students else [others]


@dataclass(frozen=True)
class StudyRun:
    """One `sparsebert finetune`: a model on a task at one rate, for some seeds."""

    model: str
    task: str
    learning_rate: float
    seeds: tuple[int, ...]
    score_test: bool
    teacher: Path | None = None

    @property
    def name(self) -> str:
        """Of the run's folder in the study's."""
        return f"{self.task}.{self.model}.lr{self.learning_rate:g}"


Rates = Mapping[str, Mapping[str, float]]  # task -> model -> the rate that dev chose


def finetune_overrides(study: StudyConfig, run: StudyRun) -> list[str]:
    """The run as field=value over its task's file; later ones win."""
    model = study.models[run.model]
    overrides = [
        *study.overrides,
        *study.tasks[run.task].overrides,
        f"name={run.name}",
        f"model.init_from={model.init_from}",
        f"seeds={list(run.seeds)}",
        f"train.learning_rate={run.learning_rate:g}",
        f"score_test={str(run.score_test).lower()}",
        f"launch.runs_dir={study.folder}",
    ]
    if model.distillation is not None:
        fields = {"teacher": str(run.teacher), **model.distillation.model_dump()}
        flow = yaml.safe_dump(fields, default_flow_style=True, width=float("inf"))
        overrides.append(f"distillation={flow.strip()}")
    return overrides


def load_finetune(study: StudyConfig, run: StudyRun) -> FinetuneConfig:
    """The run's configuration, validated."""
    file = study.tasks[run.task].config
    loaded = config_loading.load(file, finetune_overrides(study, run), FinetuneConfig)
    return loaded.resolved()


def grid_runs(study: StudyConfig, models: Sequence[str], chosen: Rates) -> Iterator[StudyRun]:
    """What chooses the models' learning rates; nothing where there is only one."""
    seeds = tuple(study.seeds[: study.grid_seeds])
    for task in study.tasks:
        if len(study.grid(task)) == 1:
            continue
        for model in models:
            teacher = _teacher(study, task, model, chosen)
            for rate in study.grid(task):
                yield StudyRun(model, task, rate, seeds, score_test=False, teacher=teacher)


def choose_rates(
    study: StudyConfig, models: Sequence[str], dev_scores: Mapping[StudyRun, float]
) -> dict[str, dict[str, float]]:
    """Task -> model -> the rate with the best dev score; the smaller of equal ones."""

    def best(task: str, model: str) -> float:
        if len(study.grid(task)) == 1:
            return study.grid(task)[0]
        tried = [r for r in dev_scores if (r.task, r.model) == (task, model)]
        return min(tried, key=lambda r: (-dev_scores[r], r.learning_rate)).learning_rate

    return {task: {model: best(task, model) for model in models} for task in study.tasks}


def final_runs(study: StudyConfig, models: Sequence[str], chosen: Rates) -> list[StudyRun]:
    """What is scored on test: each of the models at its own rate, and at its twin's."""
    return list(
        dict.fromkeys(
            StudyRun(
                name,
                task,
                chosen[task][owner],
                tuple(study.seeds),
                score_test=True,
                teacher=_teacher(study, task, name, chosen),
            )
            for task in study.tasks
            for name in models
            for owner in (name, study.models[name].twin)
            if owner is not None
        )
    )


def _teacher(study: StudyConfig, task: str, model: str, chosen: Rates) -> Path | None:
    """The run that `model` learns `task` from: its twin's, first seed, at the twin's rate."""
    twin = study.models[model].twin
    if study.models[model].distillation is None or twin is None:
        return None
    final = StudyRun(twin, task, chosen[task][twin], tuple(study.seeds), score_test=True)
    return study.folder / final.name / f"seed-{study.seeds[0]}"


def mean_dev_score(results: list[dict[str, Any]]) -> float:
    """Of the main metric, over seeds."""
    return float(np.mean([r["dev"][r["main_metric"]] for r in results]))
