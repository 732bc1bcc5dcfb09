"""A run as JSON on its way to the workers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert.pretrain import Pretraining
from bert.tasks.finetune import FinetunePlan, Finetuning
from bert.tasks.finetune_config import FinetuneConfig
from launch.config_loading import load_config
from launch.recipes import RECIPES, pack, unpack
from training.recipe import RunPlan

PLAN: dict[str, Any] = {
    "identity": {"seed": 1},
    "init_from": None,
    "teacher": None,
    "finished_steps": 3,
    "total_steps": 8,
    "is_complete": False,
}
FINETUNE = {
    "model": {"hidden_size": 8},
    "tokenizer": {"lower_case": True, "settings": {}},
    "sparsity": None,
    "labels": ["no", "yes"],
    "notes": ["two classes"],
}


@pytest.fixture
def pretraining(write_config: Callable[..., Path]) -> Pretraining:
    return Pretraining(load_config(write_config()))


@pytest.fixture
def finetuning() -> Finetuning:
    task = {"kind": "classification", "train": "a", "dev": "b", "metrics": ["accuracy"]}
    fields = {"name": "task", "seeds": [5], "model": {"init_from": "runs/a"}, "task": task}
    return Finetuning(FinetuneConfig.model_validate(fields))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_job_comes_out_as_it_went_in(pretraining: Pretraining, finetuning: Finetuning) -> None:
    plans = RunPlan(**PLAN), FinetunePlan(**PLAN, **FINETUNE)
    for recipe, plan in zip((pretraining, finetuning), plans, strict=True):
        packed = through_json(pack(recipe, plan))
        assert RECIPES[packed["recipe"]] is type(recipe)
        found, found_plan = unpack(packed)
        assert type(found) is type(recipe) and found.config == recipe.config
        assert found_plan == plan and type(found_plan) is type(plan)


def test_a_job_of_release_0_1_is_told_by_its_configuration(
    pretraining: Pretraining, finetuning: Finetuning
) -> None:
    old = {**PLAN, "model": {}, "sparsity": None, "lower_case": False}
    config = finetuning.config.model_dump(mode="json")
    recipe, plan = unpack(through_json({"config": config, "plan": old}))
    assert isinstance(recipe, Finetuning) and isinstance(plan, FinetunePlan)
    assert plan.tokenizer == {"lower_case": False, "settings": {}}
    config = pretraining.config.model_dump(mode="json")
    recipe, _ = unpack(through_json({"config": config, "plan": PLAN}))
    assert isinstance(recipe, Pretraining)


def test_a_run_says_what_its_workers_read(pretraining: Pretraining, finetuning: Finetuning) -> None:
    assert set(pretraining.input_files()) == {"data.shards", "evaluation.sets", "model.vocab"}
    assert finetuning.input_files() == {"task.train": ["a"], "task.dev": ["b"]}


def test_pretraining_is_finished_at_its_last_step(pretraining: Pretraining) -> None:
    plan = RunPlan(**PLAN)
    assert [pretraining.is_finished(plan, step) for step in (7, 8)] == [False, True]
