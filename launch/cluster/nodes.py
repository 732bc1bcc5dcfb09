"""The Ray cluster that a run uses: one that is there, or one of its own that ends with it.

A cluster of its own is closed to others by a token, keeps its files in a private folder instead of
/tmp/ray, where those of another user may be in the way, and leaves its logs in the run folder.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distributed.errors import BadInput
from launch.cluster.own import QUIET, start_own_cluster
from training.config import LaunchConfig

# Starting workers includes importing torch and DeepSpeed, slow on a cold file system.
_GROUP_START_SECONDS = "300"
# Long enough that a worker's death is seen together with the errors that it causes in others.
_LOOK_SECONDS = "1"
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_SILENCE_SECONDS = 600.0
# A Unix socket's path has at most 107 characters, and Ray adds about 75 to its folder.
_LONGEST_TEMPORARY_FOLDER = 16
_PROJECT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def ray_cluster(launch: LaunchConfig, *, log_folder: Path) -> Iterator[bool]:
    """Connect to the cluster that the configuration or RAY_ADDRESS names, or start one here.

    Yields whether it was started here: it is this run's alone, and ends with this process.

    Args:
        launch: has the address, if any.
        log_folder: where the logs of a cluster that was started here go, if it exists at the end.

    Raises:
        BadInput: nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A thread that asks a cluster which is gone must not start another.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _GROUP_START_SECONDS)
    # How soon the controller sees that workers have ended; Ray's own is 2 seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _LOOK_SECONDS)
    # One that answers no health check: stopped, or on a machine that hangs.
    silence = str(min(_SILENCE_SECONDS, launch.hang_seconds))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", silence)
    # Without it, a lost worker is told in a paragraph of Ray's own, whatever the level of its log.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    address = launch.address or os.environ.get("RAY_ADDRESS") or "local"
    with tempfile.TemporaryDirectory(
        prefix="sparsebert-", dir=short_temporary_folder(), ignore_cleanup_errors=True
    ) as private:
        try:
            # Workers look for packages in the current folder of ray.init before all others: it must
            # be ours in a checkout, and nobody's where we are installed.
            is_installed = _PROJECT.name in ("site-packages", "dist-packages")
            with contextlib.chdir(private if is_installed else _PROJECT):
                if address == "local":
                    start_own_cluster(Path(private))
                else:
                    _connect(address)
            yield address == "local"
        finally:
            _leave()
            for logs in Path(private).glob("session_2*/logs"):
                if log_folder.is_dir():
                    # A full disk: how the run ended is worth more.
                    with contextlib.suppress(OSError):
                        shutil.copytree(logs, log_folder, symlinks=True, dirs_exist_ok=True)


def _leave() -> None:
    import ray

    ray.shutdown()


def _connect(address: str) -> None:
    print(f"connecting to the Ray cluster at {address}", flush=True)
    if address.startswith("ray://"):
        raise BadInput(
            f"launch.address or RAY_ADDRESS is {address}, and Ray Train does not work through a "
            "Ray client: give the head node's HOST:PORT, on a machine of the cluster"
        )
    if address != "auto":
        _check_that_it_answers(address)
    import ray

    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise BadInput(
            f"the Ray cluster at {address} cannot be used ({error}): set launch.address or "
            "RAY_ADDRESS to a cluster that runs, or neither to have one started"
        ) from error


def _check_that_it_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"no Ray cluster answers at {address} ({error}): set launch.address or RAY_ADDRESS to "
            "HOST:PORT of a cluster that runs, or neither to have one started"
        ) from error


def short_temporary_folder() -> str:
    """Where a folder of Ray's may be made: TMPDIR is often too long for its sockets."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_TEMPORARY_FOLDER else "/tmp"


def check_resources(launch: LaunchConfig) -> bool:
    """Whether workers get a GPU each. Refuses at once what Ray would wait for without end.

    Raises:
        BadInput: the cluster cannot hold the workers.
    """
    import ray

    nodes = _living_nodes()
    use_gpu = choose_gpu(launch, nodes)
    fit = count_places(launch, nodes, use_gpu=use_gpu)
    if fit < launch.fewest_workers:
        wanted = describe_workers(launch)
        wants = f"{launch.cpus_per_worker:g} CPU" + (" and a GPU" if use_gpu else "")
        raise BadInput(
            f"launch.num_workers is {wanted}, each with {wants}, but the cluster holds "
            f"{fit}, {launch.fewest_workers - fit} too few (it has {describe_nodes(nodes)}): lower "
            "launch.num_workers or launch.cpus_per_worker"
            + (", or set launch.use_gpu to false" if use_gpu else "")
        )
    free = ray.available_resources()
    kind, needed = ("GPU", 1.0) if use_gpu else ("CPU", launch.cpus_per_worker)
    least = launch.fewest_workers * needed
    if free.get(kind, 0) < least:
        print(
            f"waiting for {least:g} {kind}s: others use the cluster, and "
            f"{free.get(kind, 0):g} are free",
            flush=True,
        )
    return use_gpu


def count_free_places(launch: LaunchConfig, *, use_gpu: bool) -> int:
    """How many workers would fit beside what runs, on the nodes that run a task at once.

    A lost node counts as living for half a minute, and a group that waits for it waits longer.
    """
    import ray

    # In public Ray tells this of the whole cluster only; a worker cannot be split over two nodes.
    free = ray._private.state.available_resources_per_node()
    roomy = {
        node: resources
        for node, resources in free.items()
        if count_places(launch, [resources], use_gpu=use_gpu)
    }

    def answer() -> None:
        return None

    asked = {task_on_node(answer, node).remote(): resources for node, resources in roomy.items()}
    if not asked:
        return 0
    answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    there = []
    for reference in answers:
        try:
            ray.get(reference)
        except ray.exceptions.RayError:
            continue  # it was lost meanwhile
        there.append(asked[reference])
    return count_places(launch, there, use_gpu=use_gpu)


def task_on_node(function: Callable[..., Any], node_id: str) -> Any:
    """`function` as a task of that node, beside what runs there; it is not tried again."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return ray.remote(num_cpus=0, max_retries=0)(function).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
    )


def _living_nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def describe_workers(launch: LaunchConfig) -> str:
    """`launch.num_workers` as one writes it."""
    if launch.is_elastic:
        return f"[{launch.fewest_workers},{launch.most_workers}]"
    return str(launch.most_workers)


def describe_nodes(nodes: list[dict[str, float]]) -> str:
    """What a cluster has, in words: `3 node(s): 2 with 8 CPUs and 2 GPUs, 1 with 4 CPUs ...`."""
    # In one order, whatever the order in which Ray lists the nodes: the commonest first.
    kinds = Counter((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
    each = [
        f"{count} with {cpus:g} CPUs and {gpus:g} GPUs"
        for (cpus, gpus), count in sorted(kinds.items(), key=lambda kind: kind[::-1], reverse=True)
    ]
    return f"{len(nodes)} node(s): {', '.join(each)}"


def choose_gpu(launch: LaunchConfig, nodes: list[dict[str, float]]) -> bool:
    """Whether workers use GPUs, on nodes with these resources."""
    if launch.use_gpu == "auto":
        return any(node.get("GPU", 0) > 0 for node in nodes)
    return launch.use_gpu


def count_places(launch: LaunchConfig, nodes: list[dict[str, float]], *, use_gpu: bool) -> int:
    """How many workers nodes with these resources hold: none is split over two."""
    # In the ten-thousandths that Ray counts resources in: 0.3 / 0.1 is below 3 in floating point.
    each = max(1, round(launch.cpus_per_worker * 10_000))
    places = 0
    for node in nodes:
        by_cpu = round(node.get("CPU", 0) * 10_000) // each
        places += min(by_cpu, int(node.get("GPU", 0))) if use_gpu else by_cpu
    return places
