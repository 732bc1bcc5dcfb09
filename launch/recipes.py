"""The table of recipes, and a run as JSON on its way to the workers."""

from dataclasses import asdict
from importlib import import_module
from typing import Any

from bert.pretrain import Pretraining
from bert.tasks.finetune import Finetuning
from distributed.imports import freeze_imports, without_collector
from training.recipe import Recipe, RunPlan

AnyRecipe = Recipe[Any]
RECIPES: dict[str, type[Pretraining] | type[Finetuning]] = {
    recipe.name: recipe for recipe in (Pretraining, Finetuning)
}


def pack(recipe: AnyRecipe, plan: RunPlan) -> dict[str, Any]:
    """Recipe, configuration and plan as JSON."""
    config = recipe.config.model_dump(mode="json")
    return {"recipe": recipe.name, "config": config, "plan": asdict(plan)}


def unpack(packed: dict[str, Any]) -> tuple[AnyRecipe, RunPlan]:
    """The inverse of `pack`; it also reads what release 0.1 has packed, without a recipe."""
    plan = dict(packed["plan"])
    name = packed.get("recipe") or ("finetune" if "task" in packed["config"] else "pretrain")
    if "lower_case" in plan:
        plan["tokenizer"] = {"lower_case": plan.pop("lower_case"), "settings": {}}
        plan["labels"] = []
    kind: Any = RECIPES[name]
    return kind(kind.config_type.model_validate(packed["config"])), kind.plan_type(**plan)


def import_training(recipe: AnyRecipe, *, use_gpu: bool) -> None:
    """Import what trains the recipe, which takes seconds."""
    with without_collector():
        from distributed.zero import import_deepspeed

        import_module(recipe.training_module)
        import_module("training.worker")
        import_deepspeed("cuda" if use_gpu else "cpu")
    freeze_imports()
