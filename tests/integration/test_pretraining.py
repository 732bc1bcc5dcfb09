"""Whole runs on real Ray and DeepSpeed: what they leave; one mask wherever they run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.commands import (
    ROOT,
    Command,
    assert_quiet,
    checkpoints,
    digests,
    environment,
    metrics,
)
from tests.integration.conftest import STEPS, Start

ONE_SHOT = [
    "sparsity.schedule=one_shot",
    "sparsity.prune_start_step=0",
    "sparsity.prune_end_step=null",
    "train.total_steps=2",
    "evaluation.sets={}",
]


def test_a_run_leaves_what_the_design_says(reference: tuple[Command, Path]) -> None:
    command, run = reference
    assert_quiet(command)
    lines = command.out.splitlines()
    assert lines[:2] == ["starting a local Ray cluster", "starting 2 worker(s)"]
    assert [line for line in lines if line.startswith("step ") and "tok/s" in line]
    assert f"step {STEPS}/{STEPS}" in command.out
    assert lines[-1] == f"{run} is complete: {STEPS} steps"

    assert yaml.safe_load((run / "config.yaml").read_text())["name"] == "reference"
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert {file.name for file in (run / "logs").iterdir()} == {"worker-0.log", "worker-1.log"}
    (attempt,) = (run / "ray").iterdir()
    assert list((attempt / "logs").glob("raylet*"))
    # Ray Train's controller, its meeting place for reports, two workers: nothing that no one uses.
    # launch/cluster/trainer.py leaves the others out by private names of Ray's, and a port keeps
    # its dashboard away.
    assert len(list((attempt / "logs").glob("python-core-worker-*"))) == 4
    assert list((attempt / "logs").glob("dashboard.*")) == []
    assert not (run / "stop").exists()

    records = metrics(run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    keys = {"train/mlm_loss", "sparsity/actual", "sparsity/target", "sparsity/threshold"}
    keys |= {"sparsity/digest", "throughput/tokens_per_second", "validation/general/mlm_loss"}
    assert keys <= records[-1].keys()
    assert records[-1]["sparsity/actual"] == pytest.approx(0.8, abs=1e-4)

    assert list(checkpoints(run)) == [STEPS - 10, STEPS]
    manifest = checkpoints(run)[STEPS]
    assert manifest["world_size"] == 2
    assert set(manifest["files"]) == {"rank-00000.safetensors", "rank-00001.safetensors"}


def test_a_finished_run_starts_nothing(
    reference: tuple[Command, Path], config_file: Path, start: Start
) -> None:
    _, run = reference
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    again = start("pretrain", config_file)
    assert again.wait() == 0
    assert again.out == f"{run} is complete: {STEPS} steps\n"
    assert_quiet(again)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


@pytest.fixture(scope="session")
def local_digest(workspace: Path, config_file: Path, start: Start) -> str:
    """Of the mask that one process without Ray finds."""
    command = start("pretrain", config_file, *ONE_SHOT, "name=local", "--local")
    assert command.wait() == 0, command.err
    assert_quiet(command)
    (digest,) = digests(workspace / "runs" / "local")
    return digest


@pytest.mark.parametrize(("num_workers", "stage", "precision"), [(1, 0, "fp32"), (3, 3, "bf16")])
@pytest.mark.cluster
def test_one_mask_on_any_number_of_workers(
    num_workers: int,
    stage: int,
    precision: str,
    local_digest: str,
    workspace: Path,
    config_file: Path,
    cluster: dict[str, str],
    start: Start,
) -> None:
    name = f"workers-{num_workers}"
    changes = [f"name={name}", f"launch.num_workers={num_workers}", f"zero.stage={stage}"]
    changes += [f"train.precision={precision}", "launch.cpus_per_worker=0.5"]
    command = start("pretrain", config_file, *ONE_SHOT, *changes, env=cluster)
    assert command.wait() == 0, command.out + command.err
    assert_quiet(command)
    assert command.out.startswith(f"connecting to the Ray cluster at {cluster['RAY_ADDRESS']}\n")
    run = workspace / "runs" / name
    assert checkpoints(run)[2]["world_size"] == num_workers
    assert digests(run) == {local_digest}


def test_one_mask_under_torchrun(
    local_digest: str, workspace: Path, config_file: Path, start: Start
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--standalone", "-m"]
    command = start(
        "pretrain",
        config_file,
        *ONE_SHOT,
        "name=torchrun",
        program=torchrun,
        env=environment(OMP_NUM_THREADS="1"),  # without it torchrun warns
    )
    assert command.wait() == 0, command.out + command.err
    assert command.err == ""
    assert command.out.splitlines()[-1].endswith("is complete: 2 steps")
    run = workspace / "runs" / "torchrun"
    assert checkpoints(run)[2]["world_size"] == 2
    assert digests(run) == {local_digest}


@pytest.mark.cluster
def test_transfer_with_frozen_masks_then_export(
    reference: tuple[Command, Path],
    workspace: Path,
    shards: Path,
    config_file: Path,
    cluster: dict[str, str],
    start: Start,
) -> None:
    config = yaml.safe_load(config_file.read_text())
    config |= {"name": "transfer", "sparsity": {"schedule": "frozen"}}
    config["model"]["init_from"] = str(reference[1])
    config["data"]["shards"] = str(shards / "pubmed")
    config["train"]["total_steps"] = 4
    file = workspace / "transfer.yaml"
    file.write_text(yaml.safe_dump(config))
    command = start("pretrain", file, env=cluster)
    assert command.wait() == 0, command.out + command.err
    run = workspace / "runs" / "transfer"
    digest = metrics(reference[1])[-1]["sparsity/digest"]
    assert digests(run) == {digest}

    out = workspace / "exported"
    exporting = start("export", run, out, "--json")
    assert exporting.wait() == 0, exporting.err
    assert json.loads(exporting.out)["digest"] == digest
    # A fresh process that knows nothing of this project.
    script = (
        "import sys; from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        "model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "weights = [w for n, w in model.bert.encoder.named_parameters()\n"
        "           if w.dim() == 2]\n"
        "zeros, all = (sum(int(f(w)) for w in weights) for f in "
        "(lambda w: (w == 0).sum(), lambda w: w.numel()))\n"
        "print(zeros / all)"
    )
    reloaded = subprocess.run(
        [sys.executable, "-P", "-c", script, str(out)],
        capture_output=True,
        text=True,
        cwd=workspace,
        env={**environment(), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        timeout=120,
        check=False,
    )
    assert reloaded.returncode == 0, reloaded.stderr
    assert float(reloaded.stdout) == pytest.approx(0.8, abs=1e-4)
    assert str(ROOT) not in reloaded.stderr
