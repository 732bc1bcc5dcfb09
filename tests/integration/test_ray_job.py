"""Jobs of a real Ray cluster: a head and two worker nodes that have none of our packages."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import network_storage, virtual_nodes
from tests.integration.commands import ROOT, Command, checkpoints, last_step, metrics
from tests.integration.conftest import STEPS, Start
from tests.integration.ray_nodes import RayNodes, ray_nodes
from tests.integration.test_faults import assert_equal_runs
from tests.integration.virtual_nodes import VirtualNodes, wait_until

MISSING = virtual_nodes.why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]
pytestmark += [pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def nodes(workspace: Path) -> Iterator[VirtualNodes]:
    with virtual_nodes.virtual_nodes(3, workspace) as made:
        yield made


@pytest.fixture(scope="module")
def ray(nodes: VirtualNodes) -> Iterator[RayNodes]:
    with ray_nodes(nodes) as made:
        yield made


def test_stopped_by_an_interrupt_and_continued_by_ray_job_submit(
    ray: RayNodes,
    nodes: VirtualNodes,
    reference: tuple[Command, Path],
    config_file: Path,
    workspace: Path,
    start: Start,
) -> None:
    run = workspace / "runs" / "job"
    options = ["name=job", "launch.cpus_per_worker=1", "launch.placement=spread"]
    env = {**ray.env, "PYTHONPATH": str(ROOT)}
    command = start("submit", "--ray", ray.dashboard, config_file, *options, env=env)
    command.await_step(run, 3)
    assert all(node.runs("RayTrainWorker") for node in nodes.nodes[1:])
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 75, command.out + command.err
    assert command.err == ""
    first, *_ = command.out.splitlines()
    job = first.split()[1]
    assert first == f"job {job} is submitted, run folder {run}"
    assert "SIGINT: stopping the job, again to leave it alone\n" in command.out
    assert "SIGTERM: stopping at the next step's end" in command.out
    stopped_at = last_step(run)
    assert 3 <= stopped_at < STEPS
    assert max(checkpoints(run)) == stopped_at
    assert f"{run} is stopped and saved at step {stopped_at} of {STEPS}" in command.out

    # Continued without our command, from the project's folder, as any Ray program.
    program = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    program += ["--address", ray.dashboard, "--working-dir", "."]
    job_program = ["python", "-m", "launch", "pretrain", str(config_file), *options]
    done = subprocess.run(
        [*program, "--", *job_program],
        cwd=ROOT,
        env=ray.env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{run} is complete: {STEPS} steps" in done.stdout
    assert_equal_runs(run, reference[1])

    # What was uploaded lies unpacked on the head.
    uploads = [folder for folder in ray.uploads() if folder.is_dir()]
    assert len(uploads) == 2
    sizes = {}
    for folder in uploads:
        files = [file for file in folder.rglob("*") if file.is_file()]
        sizes[(folder / "samples").exists()] = sum(file.stat().st_size for file in files)
        names = {path.name for path in folder.iterdir()}
        assert not names & {"runs", "data", "exports", ".venv", ".git"}
    assert sizes[False] < 2_000_000  # `sparsebert submit`: packages and configuration
    assert sizes[True] < 8_000_000  # the project's folder, with its samples


@pytest.mark.parametrize("case", ["too many workers", "no shared storage", "no data on a node"])
def test_refused(
    case: str,
    ray: RayNodes,
    nodes: VirtualNodes,
    config_file: Path,
    shards: Path,
    workspace: Path,
    start: Start,
) -> None:
    last = nodes[2]
    shown = f"{last.name} ({last.address})"
    own = workspace / case.replace(" ", "-")
    if case == "too many workers":
        change = "launch.num_workers=5"
        told = "launch.num_workers is 5, each with 1 CPU, but the cluster holds 3, 2 too few (it "
        told += "has 3 node(s): 1 with 2 CPUs and 0 GPUs, 1 with 1 CPUs and 0 GPUs, "
        told += "1 with 0 CPUs and 0 GPUs): lower "
    elif case == "no shared storage":
        own.mkdir()
        last.run("mount", "-t", "tmpfs", "none", own, check=True)
        change = f"launch.runs_dir={own}"
        told = f"launch.runs_dir is {own}, and the node {shown} does not share it: set it to a path"
    else:
        own.mkdir()
        for file in (shards / "general").iterdir():
            (own / file.name).hardlink_to(file)
        last.run("mount", "-t", "tmpfs", "none", own, check=True)
        change = f"data.shards={own}"
        told = f"data.shards has {own}/manifest.json, which the node {shown} does not see: put it"
    env = {**ray.env, "PYTHONPATH": str(ROOT)}
    options = ["name=job-refused", "launch.cpus_per_worker=1", change]
    command = start("submit", "--ray", ray.dashboard, config_file, *options, env=env)
    assert command.wait() == 2, command.out + command.err
    assert f"error: {told}" in command.out
    assert not (workspace / "runs" / "job-refused").exists()
    assert not list(own.glob(".probe*")) and not (own / "job-refused").exists()


def test_who_has_no_token_is_refused(ray: RayNodes, config_file: Path, start: Start) -> None:
    env = {**ray.env, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "0" * 64}
    del env["RAY_AUTH_TOKEN_PATH"]
    command = start("submit", "--ray", ray.dashboard, config_file, env=env)
    assert command.wait() == 2
    (line,) = command.err.splitlines()
    assert line.startswith(f"error: the Ray cluster at {ray.dashboard} wants another token: set ")


def test_detached_followed_and_stopped_by_ray_itself(
    ray: RayNodes, config_file: Path, workspace: Path, start: Start
) -> None:
    run = workspace / "runs" / "detached"
    options = ["name=detached", "launch.cpus_per_worker=1", "train.total_steps=100000"]
    env = {**ray.env, "PYTHONPATH": str(ROOT)}
    command = start("submit", "--ray", ray.dashboard, "--detach", config_file, *options, env=env)
    assert command.wait() == 0, command.out + command.err
    lines = [line.partition(":")[2].split() for line in command.out.splitlines()]
    follow, stop = lines[1], lines[2]
    assert follow[:3] == ["ray", "job", "logs"] and stop[:3] == ["ray", "job", "stop"]
    wait_until(lambda: last_step(run) >= 2, "step 2", seconds=300)
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run([*ray_command, *stop[1:]], env=ray.env, check=True, timeout=300)
    told = subprocess.run(
        [*ray_command, *follow[1:]], env=ray.env, capture_output=True, text=True, timeout=60
    )
    step = max(checkpoints(run))
    assert f"{run} is stopped and saved at step {step} of 100000" in told.stdout


NO_STORAGE = network_storage.why_not()


@pytest.mark.skipif(NO_STORAGE is not None, reason=str(NO_STORAGE))
def test_a_run_folder_on_network_storage(
    ray: RayNodes,
    nodes: VirtualNodes,
    reference: tuple[Command, Path],
    config_file: Path,
    workspace: Path,
    start: Start,
) -> None:
    """Every node has it mounted for itself. A worker dies, and another launcher wants the run."""
    runs = workspace / "network"
    run = runs / "networked"
    options = ["name=networked", f"launch.runs_dir={runs}", "launch.cpus_per_worker=1"]
    options += ["launch.placement=spread"]
    with network_storage.network_storage(nodes, workspace / "storage", runs):
        env = {**ray.env, "PYTHONPATH": str(ROOT)}
        command = start("submit", "--ray", ray.dashboard, config_file, *options, env=env)
        command.await_step(run, 12)
        nodes[2].run("pkill", "-9", "-f", "RayTrainWorker", check=True)
        second = start("pretrain", config_file, *options, "--local")
        assert second.wait() == 2, second.out + second.err
        assert f"error: {run} is being trained by process " in second.err
        assert command.wait() == 0, command.out + command.err
        assert re.search(r"restarting from step \d+ \(2 restart\(s\) left\)", command.out)
        assert_equal_runs(run, reference[1])


def test_fewer_workers_while_a_node_is_cut_off_and_more_when_it_is_back(
    ray: RayNodes, nodes: VirtualNodes, config_file: Path, workspace: Path, start: Start
) -> None:
    """Its worker lives on, and writes nothing into the run that went on without it."""
    run, steps = workspace / "runs" / "elastic", 400
    options = ["name=elastic", "launch.num_workers=[1,3]", f"train.total_steps={steps}"]
    options += ["launch.cpus_per_worker=1", "evaluation.sets={}"]
    env = {**ray.env, "PYTHONPATH": str(ROOT)}
    command = start("submit", "--ray", ray.dashboard, config_file, *options, env=env, seconds=900)

    def starts() -> list[int]:
        """How many workers each group had."""
        return [int(n) for n in re.findall(r"(\d) worker\(s\) of at most 3", command.out)]

    command.await_step(run, 13)
    assert starts() == [3]
    cut_at = last_step(run)
    nodes[2].unplug()
    assert nodes[2].runs("RayTrainWorker")
    command.await_that(lambda: len(starts()) == 2, "fewer workers")
    command.await_step(run, last_step(run) + 12)  # and a checkpoint
    assert nodes[2].runs("RayTrainWorker")  # it knows of nothing yet
    written = {step: manifest for step, manifest in checkpoints(run).items() if step > cut_at}
    assert written
    nodes[2].plug_in()
    wait_until(lambda: not nodes[2].runs("raylet"), "Ray ends where it was cut off", seconds=120)
    for step, manifest in checkpoints(run).items():
        assert written.get(step, manifest) == manifest
    ray.start_again(nodes[2])
    command.await_that(lambda: len(starts()) == 3, "all workers again")
    assert command.wait() == 0, command.out + command.err

    assert starts() == [3, 1, 3], command.out
    assert len(re.findall(r"restarting from step \d+ \(\d restart\(s\) left\)", command.out)) == 1
    assert command.out.count("saved and starting again: there is room for more workers") == 1
    records = metrics(run)
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert {m["world_size"] for m in checkpoints(run).values()} == {3}
    assert records[-1]["sparsity/actual"] == pytest.approx(0.8, abs=1e-4)
    inspected = start("inspect", run)
    assert inspected.wait() == 0, inspected.out + inspected.err
