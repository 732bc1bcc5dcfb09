"""A run that asks for one to two workers loses a node on the way: it goes on with what is left."""

import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.commands import Command, checkpoints, environment, metrics
from tests.integration.conftest import _RAY_START, STEPS, Start

RAY = [sys.executable, "-c", _RAY_START]
COMMON = ["--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]


@pytest.fixture
def two_nodes(start: Start) -> Iterator[tuple[dict[str, str], Command]]:
    """A head and a node, each with one CPU: the environment that reaches them, and the node."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets need a short path
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    options = ["--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", *COMMON]
    head = start(*options, f"--temp-dir={folder}", program=RAY, env=env)
    address = folder / "ray_current_cluster"
    try:
        head.await_that(lambda: address.exists() and "runtime" in head.out, "Ray is up")
        gcs = address.read_text().strip()
        node = start(f"--address={gcs}", "--num-cpus=1", *COMMON, program=RAY, env=env)
        node.await_that(lambda: "runtime" in node.out, "the node is up")
        yield {**env, "RAY_ADDRESS": gcs}, node
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(900)
def test_a_lost_node_leaves_the_run_with_fewer_workers(
    reference: tuple[Command, Path],
    two_nodes: tuple[dict[str, str], Command],
    workspace: Path,
    config_file: Path,
    start: Start,
) -> None:
    env, node = two_nodes
    run = workspace / "runs" / "elastic"
    command = start("pretrain", config_file, "name=elastic", "launch.num_workers=[1,2]", env=env)
    command.await_step(run, 12)
    assert checkpoints(run)[10]["world_size"] == 2
    for process in [*node.descendants(), psutil.Process(node.process.pid)]:
        process.kill()
    assert command.wait() == 0, command.out + command.err
    assert "starting 1 to 2 worker(s)" in command.out and "restarting from step" in command.out
    assert checkpoints(run)[STEPS]["world_size"] == 1
    # The data do not depend on the number of workers, nor do the sizes of the masks.
    ours, theirs = metrics(run), metrics(reference[1])
    for figure in ("step", "train/tokens_seen", "sparsity/actual"):
        assert [r[figure] for r in ours] == [r[figure] for r in theirs], figure
