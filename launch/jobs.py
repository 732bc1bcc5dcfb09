"""The two kinds of run, pretraining and fine-tuning, as the driver and the workers meet them.

    configuration --check_job--> plan --begin_job--> run folder --run_job (every worker)--> steps

Configuration and plan travel to the workers as JSON.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from distributed.imports import freeze_imports, without_collector
from launch.configuration import PretrainConfig
from launch.finetune_configuration import FinetuneConfig
from launch.run_setup import (
    AnyRunConfig,
    FinetunePlan,
    RunPlan,
    begin_run,
    check_run,
    settle_teacher,
)


def check_job(config: AnyRunConfig) -> RunPlan:
    """Check everything that can be wrong; writes nothing.

    Raises:
        BadInput: one sentence on what to change.
    """
    if isinstance(config, FinetuneConfig):
        from launch.finetune_setup import check_finetune, tell_notes

        plan = check_finetune(config)
        if plan.is_complete:
            tell_notes(plan)  # no start will
        return plan
    return check_run(config)


def begin_job(config: AnyRunConfig, plan: RunPlan) -> None:
    """Write what the run begins with."""
    if isinstance(config, FinetuneConfig) and isinstance(plan, FinetunePlan):
        from launch.finetune_setup import begin_finetune

        begin_finetune(config, plan)
    else:
        begin_run(config, plan)


def pack_job(config: AnyRunConfig, plan: RunPlan) -> dict[str, Any]:
    """Configuration and plan as JSON."""
    return {"config": config.model_dump(mode="json"), "plan": asdict(plan)}


def unpack_job(packed: dict[str, Any]) -> tuple[AnyRunConfig, RunPlan]:
    """The inverse of `pack_job`."""
    if "task" in packed["config"]:
        plan = dict(packed["plan"])
        if "lower_case" in plan:  # a job of release 0.1
            plan["tokenizer"] = {"lower_case": plan.pop("lower_case"), "settings": {}}
            plan |= {"labels": [], "notes": []}
        return FinetuneConfig.model_validate(packed["config"]), FinetunePlan(**plan)
    return PretrainConfig.model_validate(packed["config"]), RunPlan(**packed["plan"])


def run_job(
    config: AnyRunConfig,
    plan: RunPlan,
    *,
    use_gpu: bool,
    stop_requested: Callable[[], bool],
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> int:
    """Collective: train in this process, one of the run's workers; the number of finished steps."""
    import_training(config, use_gpu=use_gpu)
    if isinstance(config, FinetuneConfig) and isinstance(plan, FinetunePlan):
        from launch.finetune_worker import run_finetuning

        return run_finetuning(
            settle_teacher(config, plan.teacher),
            plan,
            use_gpu=use_gpu,
            report=report,
            stop_requested=stop_requested,
        ).step
    assert isinstance(config, PretrainConfig)
    from launch.worker import run_pretraining

    return run_pretraining(
        settle_teacher(config, plan.teacher),
        identity=plan.identity,
        init_from=plan.source,
        use_gpu=use_gpu,
        report=report,
        stop_requested=stop_requested,
    ).step


def import_training(config: AnyRunConfig, *, use_gpu: bool) -> None:
    """Import what `run_job` needs, which takes seconds."""
    with without_collector():
        from distributed.zero import import_deepspeed

        if isinstance(config, FinetuneConfig):
            import launch.finetune_worker
        else:
            import launch.worker  # noqa: F401 (run_job finds it imported)
        import_deepspeed("cuda" if use_gpu else "cpu")
    freeze_imports()


def is_finished(config: AnyRunConfig, plan: RunPlan, finished_steps: int) -> bool:
    """Whether the run is at its end; fine-tuning may end before its last step."""
    if isinstance(config, FinetuneConfig):
        from launch.finetune_history import is_scored

        return is_scored(config)
    return finished_steps >= plan.total_steps
