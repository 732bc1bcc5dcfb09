"""Real SLURM jobs over two nodes: signalled, queued again, ended, side by side on one node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import slurm_cluster, virtual_nodes
from tests.integration.commands import ROOT, Command, checkpoints, last_step, metrics
from tests.integration.conftest import STEPS, Start
from tests.integration.slurm_cluster import Slurm
from tests.integration.test_faults import assert_equal_runs
from tests.integration.virtual_nodes import VirtualNodes, wait_until

MISSING = virtual_nodes.why_not() or slurm_cluster.why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]
pytestmark += [pytest.mark.timeout(1200)]
SCRIPT = ROOT / "launch" / "slurm" / "pretrain.sbatch"

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def nodes(workspace: Path) -> Iterator[VirtualNodes]:
    with virtual_nodes.virtual_nodes(2, workspace) as made:
        yield made


@pytest.fixture(scope="module")
def slurm(nodes: VirtualNodes) -> Iterator[Slurm]:
    with slurm_cluster.slurm_cluster(nodes) as made:
        yield made


def submit(slurm: Slurm, log: Path, *arguments: str | Path) -> str:
    """Plain sbatch of the script that the project ships; the job's number."""
    told = slurm.run("sbatch", "--parsable", f"--output={log}", *arguments)
    return told.strip()


def await_end(slurm: Slurm, job: str, log: Path) -> str:
    """The job's exit code, as SLURM writes it: code:signal."""

    def state() -> str:
        return f"{slurm.job(job)}\n{log.read_text() if log.exists() else ''}\n{slurm.log()}"

    wait_until(lambda: slurm.job(job)["JobState"] in OVER, f"job {job}", seconds=600, state=state)
    return slurm.job(job)["ExitCode"]


def await_step(slurm: Slurm, job: str, log: Path, run: Path, step: int) -> None:
    def reached() -> bool:
        assert slurm.job(job)["JobState"] not in OVER, log.read_text()
        return last_step(run) >= step

    wait_until(reached, f"step {step}", seconds=400, state=lambda: log.read_text())


def assert_nothing_runs(nodes: VirtualNodes) -> None:
    """No process but SLURM's own on the nodes."""
    for node in nodes.nodes:
        wait_until(
            lambda: all("slurm" in process for process in node.processes()),  # noqa: B023
            f"nothing runs on {node.name}",
            seconds=60,
            state=lambda: "\n".join(node.processes()),  # noqa: B023
        )


def test_signalled_then_a_node_lost_and_equal_to_a_run_that_was_not(
    slurm: Slurm,
    nodes: VirtualNodes,
    reference: tuple[Command, Path],
    config_file: Path,
    workspace: Path,
) -> None:
    run, log = workspace / "runs" / "slurm", workspace / "slurm.out"
    options = ["--nodes=2", "--cpus-per-task=1", SCRIPT, config_file, "name=slurm"]
    job = submit(slurm, log, *options, "launch.cpus_per_worker=1")
    await_step(slurm, job, log, run, 3)
    assert list(slurm.folder.glob("sparsebert-*"))
    # What `--signal=B:USR1@300` of the script makes SLURM do before the time limit.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "asks to be queued again" in log.read_text(), "requeue", state=log.read_text)
    stopped_at = last_step(run)
    assert 3 <= stopped_at < STEPS
    assert max(checkpoints(run)) == stopped_at

    # The second start loses a node: its cable first, so that the others are not told.
    await_step(slurm, job, log, run, 13)
    killed = set(slurm.folder.glob("sparsebert-*"))
    nodes[1].unplug()
    nodes[1].kill_everything()
    wait_until(lambda: slurm.job(job)["Restarts"] == "2", "requeue by SLURM", state=log.read_text)
    assert last_step(run) < STEPS
    nodes[1].plug_in()
    slurm.start_node(nodes[1])
    assert await_end(slurm, job, log) == "0:0", log.read_text()
    assert slurm.job(job)["Restarts"] == "2"
    text = log.read_text()
    assert f"job {job}, start 1, on n1, n2" in text
    assert "SIGUSR1: stopping at the next step's end" in text
    assert f"is stopped and saved at step {stopped_at} of {STEPS}" in text
    assert f"job {job}, start 2, on n1, n2" in text
    assert f"job {job}, start 3, on n1, n2" in text
    assert f"{run} is complete: {STEPS} steps" in text
    assert_equal_runs(run, reference[1])
    assert metrics(run)[-1]["sparsity/digest"] == metrics(reference[1])[-1]["sparsity/digest"]
    # A worker on each node: Ray's own logs tell where they were.
    for start in (1, 3):
        logs = run / "slurm" / f"job-{job}-start-{start}"
        assert {folder.name for folder in logs.iterdir()} == {"n1", "n2"}
        text = "".join(file.read_text() for file in logs.rglob("ray-start.log"))
        assert all(f"Local node IP: {node.address}" in text for node in nodes.nodes)
    assert_nothing_runs(nodes)
    assert set(slurm.folder.glob("sparsebert-*")) <= killed


def test_a_job_array_of_two_seeds_on_one_node(
    slurm: Slurm, nodes: VirtualNodes, config_file: Path, workspace: Path
) -> None:
    """Side by side they train; one is cancelled, which the other does not notice."""
    changes = ["seed=%a", "name=seed-%a", "launch.num_workers=1", "train.total_steps=100000"]
    changes += ["train.precision=fp32", "launch.cpus_per_worker=1"]
    place = ["--array=1-2", "--nodes=1", "--nodelist=n1", "--cpus-per-task=1"]
    array = submit(slurm, workspace / "seed-%a.out", *place, SCRIPT, config_file, *changes)
    first, second = (f"{array}_{index}" for index in (1, 2))
    logs = [workspace / f"seed-{index}.out" for index in (1, 2)]
    runs = [workspace / "runs" / f"seed-{index}" for index in (1, 2)]
    await_step(slurm, first, logs[0], runs[0], 1)
    await_step(slurm, second, logs[1], runs[1], 1)
    slurm.run("scancel", first)
    await_end(slurm, first, logs[0])
    assert slurm.job(first)["JobState"] == "CANCELLED"
    assert "queued again" not in logs[0].read_text()

    await_step(slurm, second, logs[1], runs[1], last_step(runs[1]) + 3)
    (runs[1] / "stop").touch()
    assert await_end(slurm, second, logs[1]) == "75:0", logs[1].read_text()
    assert max(checkpoints(runs[1])) == last_step(runs[1])
    losses = [metrics(run)[0]["train/mlm_loss"] for run in runs]
    assert losses[0] != losses[1]  # two seeds
    assert_nothing_runs(nodes)


def test_the_exit_code_is_the_trainings(slurm: Slurm, config_file: Path, workspace: Path) -> None:
    log = workspace / "refused.out"
    changes = ["name=slurm-refused", "data.shards=/no/such/folder"]
    job = submit(slurm, log, "--nodes=1", SCRIPT, config_file, *changes, "launch.num_workers=1")
    assert await_end(slurm, job, log) == "2:0"
    assert "/no/such/folder" in log.read_text()


def test_submit_writes_a_script_that_the_time_limits_warning_stops(
    slurm: Slurm, config_file: Path, workspace: Path, start: Start
) -> None:
    folder = workspace / "runs" / "submitted"
    options = ["name=submitted", "slurm.nodes=2", "slurm.time=1:00:00", "slurm.partition=main"]
    options += ["train.total_steps=100000", "launch.cpus_per_worker=1"]
    refused = start("submit", "--slurm", config_file, *options, "slurm.nodes=3", env=slurm.env)
    assert refused.wait() == 2
    assert "\nerror: slurm.nodes is 3 and launch.num_workers is 2: " in refused.err

    printed = start("submit", "--slurm", "--print", config_file, *options, env=slurm.env)
    assert printed.wait() == 0, printed.err
    asked = ["--nodes=2", "--cpus-per-task=1", "--time=1:00:00", "--partition=main", "--requeue"]
    for option in [*asked, "--signal=B:USR1@300"]:
        assert f"#SBATCH {option}\n" in printed.out
    assert not folder.exists()

    submitted = start("submit", "--slurm", config_file, *options, env=slurm.env)
    assert submitted.wait() == 0, submitted.err
    script = folder / "slurm" / "job.sbatch"
    job = submitted.out.split()[1]
    assert submitted.out.splitlines()[0] == f"job {job} is submitted: {script}"
    assert script.read_text() == printed.out
    log = folder / "slurm" / f"{job}.out"
    await_step(slurm, job, log, folder, 1)
    # Less than the warning's 300 seconds are left now: SLURM gives it by itself.
    hours, minutes, _ = slurm.job(job)["RunTime"].split(":")
    limit = 60 * int(hours) + int(minutes) + 4
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    wait_until(lambda: "asks to be queued again" in log.read_text(), "requeue", state=log.read_text)
    assert "SIGUSR1: stopping at the next step's end" in log.read_text()
    assert max(checkpoints(folder)) == last_step(folder)
    slurm.run("scancel", job)
    await_end(slurm, job, log)
