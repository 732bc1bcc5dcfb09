"""What Ray Train runs in each worker. Light: what trains is imported when a worker has begun."""

from pathlib import Path
from typing import Any

from distributed.imports import without_collector


def train_on_ray(arguments: dict[str, Any]) -> None:
    """Collective: Ray Train's train function. Runs in a thread, so it cannot catch signals."""
    with without_collector():
        import ray.train

        from launch.jobs import import_training, run_job, unpack_job
        from launch.process_group import set_meeting_place, set_ranks
        from launch.run_folder import run_folder_of
        from launch.stopping import is_there

        set_ranks()
        config, plan = unpack_job(arguments)
        import_training(config, use_gpu=arguments["use_gpu"])
    set_meeting_place()
    requests = run_folder_of(config).stop_file, Path(arguments["resize_request"])
    run_job(
        config,
        plan,
        use_gpu=arguments["use_gpu"],
        report=lambda figures: ray.train.report(_numbers(figures)),
        stop_requested=lambda: any(map(is_there, requests)),
    )


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}
