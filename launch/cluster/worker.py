"""What Ray Train runs in each worker. Light: what trains is imported when a worker has begun."""

from pathlib import Path
from typing import Any

from distributed.imports import without_collector


def train_on_ray(arguments: dict[str, Any]) -> None:
    """Collective: Ray Train's train function. Runs in a thread, so it cannot catch signals."""
    use_gpu = arguments["use_gpu"]
    with without_collector():
        import ray.train

        from launch.cluster.group import set_meeting_place, set_ranks
        from launch.recipes import import_training, unpack
        from training.folder import run_folder_of
        from training.stopping import is_there

        set_ranks()
        recipe, plan = unpack(arguments)
        import_training(recipe, use_gpu=use_gpu)
        from training.worker import work
    set_meeting_place()
    requests = run_folder_of(recipe.config).stop_file, Path(arguments["resize_request"])
    work(
        recipe,
        plan,
        use_gpu=use_gpu,
        report=lambda figures: ray.train.report(_numbers(figures)),
        stop_requested=lambda: any(map(is_there, requests)),
    )


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}
