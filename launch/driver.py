"""The Ray driver: checks, places and follows a run that Ray Train's workers train.

    main thread     signals -> stop file; metrics.jsonl -> progress display
    second thread   TorchTrainer.fit(), which restarts lost worker groups from the newest checkpoint

Our own manifests decide what is newest: Ray's storage holds no checkpoint of ours, and every start has
a name of its own, because Ray silently resumes a name that it has seen.
"""

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distributed.errors import BadInput
from launch.configuration import LaunchConfig, PretrainConfig, resolve_paths
from launch.progress import ProgressDisplay, follow_metrics
from launch.run_folder import RunFolder, run_folder_of
from launch.run_setup import RunPlan, set_up_run
from launch.stopping import STOPPED_EXIT_CODE, signals_request_stop

# Starting workers includes importing torch and DeepSpeed, slow on a cold file system.
_GROUP_START_SECONDS = "300"


def pretrain(config: PretrainConfig, *, local: bool = False) -> int:
    """Train the run of `config` to its end, or continue it; the process's exit code.

    Raises:
        BadInput: before anything is started.
    """
    config = resolve_paths(config)
    if local:
        from launch.local import pretrain_locally

        return pretrain_locally(config)
    plan = set_up_run(config)
    folder = run_folder_of(config)
    if plan.finished_steps >= config.train.total_steps:
        print(f"{folder.path} is complete: {plan.finished_steps} steps", flush=True)
        return 0
    with _ray_cluster(config.launch):
        use_gpu = _check_resources(config.launch)
        return _fit(config, plan, folder, use_gpu)


@contextmanager
def _ray_cluster(launch: LaunchConfig) -> Iterator[None]:
    """Connect to the cluster that the configuration or RAY_ADDRESS names, or start one here."""
    address = launch.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _GROUP_START_SECONDS)
    with tempfile.TemporaryDirectory(prefix="sparsebert-") as private:
        if address is None:
            # A token of this cluster's own: access stays closed and ~/.ray is left alone.
            token = Path(private) / "ray_token"
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            print("starting a local Ray cluster", flush=True)
            ray.init(include_dashboard=False, object_store_memory=200_000_000, **quiet)
        else:
            print(f"connecting to the Ray cluster at {address}", flush=True)
            try:
                ray.init(address=address, **quiet)
            except ConnectionError as error:
                raise BadInput(f"no Ray cluster answers at {address}: set launch.address") from error
        try:
            yield
        finally:
            ray.shutdown()


def _check_resources(launch: LaunchConfig) -> bool:
    """Whether workers get a GPU each. Refuses at once what Ray would wait for without end."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0) for node in nodes)
    use_gpu = gpus > 0 if launch.use_gpu == "auto" else launch.use_gpu
    fit = sum(
        int(
            min(
                node.get("CPU", 0) / launch.cpus_per_worker,
                node.get("GPU", 0) if use_gpu else float("inf"),
            )
        )
        for node in nodes
    )
    if fit < launch.num_workers:
        wants = f"{launch.cpus_per_worker:g} CPU" + (" and a GPU" if use_gpu else "")
        cpus = sum(node.get("CPU", 0) for node in nodes)
        raise BadInput(
            f"launch.num_workers is {launch.num_workers}, each with {wants}, but the cluster's "
            f"{len(nodes)} node(s) with {cpus:g} CPUs and {gpus:g} GPUs hold {fit}: lower "
            f"launch.num_workers or launch.cpus_per_worker"
        )
    return use_gpu


def _fit(config: PretrainConfig, plan: RunPlan, folder: RunFolder, use_gpu: bool) -> int:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    trainer = TorchTrainer(
        train_on_ray,
        train_loop_config={"config": config.model_dump(mode="json"), "plan": asdict(plan)},
        scaling_config=ScalingConfig(
            num_workers=config.launch.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": config.launch.cpus_per_worker,
                **({"GPU": 1} if use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder.ray),
            failure_config=FailureConfig(max_failures=config.launch.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome: dict[str, BaseException] = {}
    finished = threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            outcome["error"] = error
        finally:
            finished.set()

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with (
        signals_request_stop(folder.stop_file),
        ProgressDisplay(
            config.train.total_steps, start_step=plan.finished_steps, label=config.name
        ) as display,
    ):
        thread.start()
        follow_metrics(folder.metrics_file, stop=finished, on_record=display.update)
    if "error" in outcome:
        print(_explain(outcome["error"], folder), flush=True)
        return 1
    if folder.stop_file.exists():
        print(f"stopped with a checkpoint: the same command continues {folder.path}", flush=True)
        return STOPPED_EXIT_CODE
    return 0


def train_on_ray(arguments: dict[str, Any]) -> None:
    """Ray Train's train function: one worker. Runs in a thread, so it cannot catch signals."""
    import ray.train

    from launch.worker import run_pretraining

    config = PretrainConfig.model_validate(arguments["config"])
    plan = RunPlan(**arguments["plan"])
    run_pretraining(
        config,
        identity=plan.identity,
        init_from=plan.source,
        report=lambda figures: ray.train.report(_numbers(figures)),
        stop_requested=run_folder_of(config).stop_file.exists,
    )


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def _explain(error: BaseException, folder: RunFolder) -> str:
    """What went wrong, in the words of the first worker that failed, and where to read more."""
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    reason = str(first).strip().splitlines() or [repr(first)]
    return f"training failed: {reason[-1]} (logs: {folder.logs})"
