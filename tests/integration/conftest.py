"""Real text, prepared once; a run that is finished; a Ray cluster that several runs share."""

import gzip
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.commands import ROOT, Command, environment

STEPS = 40
VOCABULARY = ROOT / "samples" / "vocab.txt"
Start = Callable[..., Command]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("integration")


@pytest.fixture(scope="session")
def start(workspace: Path) -> Iterator[Start]:
    """Start a command; whatever still runs at the end of the session is stopped."""
    commands: list[Command] = []

    def start(*arguments: str | Path, **options: Any) -> Command:
        log = workspace / f"command-{len(commands):02}"
        commands.append(Command(*arguments, log=log, **options))
        return commands[-1]

    yield start
    for command in commands:
        command.stop()


@pytest.fixture(scope="session")
def shards(workspace: Path, start: Start) -> Path:
    """A folder with `general`, `pubmed` and their validation sets, through the command line."""
    with gzip.open(ROOT / "samples" / "wikipedia.jsonl.gz", "rt", encoding="utf-8") as articles:
        (workspace / "articles.jsonl").write_text("".join(next(articles) for _ in range(30)))
    sources = {
        "general": ("wikipedia", workspace / "articles.jsonl"),
        "pubmed": ("pubmed", ROOT / "samples" / "pubmed.xml.gz"),
    }
    for name, (source, file) in sources.items():
        options = ["--source", source, "--input", file, "--output", workspace / "data" / name]
        options += ["--vocab", VOCABULARY, "--validation-fraction", "0.2"]
        command = start("prepare", *options)
        assert command.wait() == 0, command.err
    return workspace / "data"


@pytest.fixture(scope="session")
def config_file(workspace: Path, shards: Path) -> Path:
    config = {
        "name": "reference",
        "seed": 5,
        "model": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "vocab": str(VOCABULARY),
        },
        "data": {"shards": str(shards / "general"), "max_seq_len": 64, "row_tokens": 64},
        "train": {
            "total_steps": STEPS,
            "global_batch_rows": 6,
            "micro_batch_rows": 1,
            "learning_rate": 1e-3,
            "hidden_dropout": 0.1,
            "precision": "bf16",
            "log_interval_steps": 1,
        },
        "evaluation": {
            "interval_steps": 20,
            "rows": 4,
            "sets": {"general": str(shards / "general-validation")},
        },
        "zero": {"stage": 2},
        "sparsity": {
            "final_sparsity": 0.8,
            "prune_start_step": 3,  # no update falls on the first step after a checkpoint
            "prune_end_step": 30,
            "prune_interval_steps": 4,
        },
        "checkpoint": {"interval_steps": 10, "keep_last": 2},
        "launch": {
            "num_workers": 2,
            "use_gpu": False,
            # Where there is one core, two workers share it.
            "cpus_per_worker": 1 if (psutil.cpu_count() or 1) > 1 else 0.5,
            "runs_dir": str(workspace / "runs"),
        },
    }
    file = workspace / "reference.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="session")
def reference(workspace: Path, config_file: Path, start: Start) -> tuple[Command, Path]:
    """A run of two workers that nothing disturbed, on a cluster of its own."""
    command = start("pretrain", config_file)
    assert command.wait() == 0, command.out + command.err
    return command, workspace / "runs" / "reference"


@pytest.fixture(scope="session")
def alone(workspace: Path, config_file: Path, start: Start) -> Path:
    """The folder of a run of one process without Ray that nothing disturbed."""
    command = start("pretrain", config_file, "name=alone", "--local")
    assert command.wait() == 0, command.out + command.err
    return workspace / "runs" / "alone"


@pytest.fixture(scope="session")
def ray_head(start: Start) -> Iterator[tuple[Command, dict[str, str]]]:
    """A Ray cluster of two CPUs with a token of its own: what runs it, and how to reach it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets need a short path
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    options = ["--head", "--port=0", "--num-cpus=2", "--num-gpus=0", "--include-dashboard=false"]
    options += ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    command = start(
        *options, f"--temp-dir={folder}", program=[sys.executable, "-c", _RAY_START], env=env
    )
    address = folder / "ray_current_cluster"
    try:
        command.await_that(lambda: address.exists() and "runtime" in command.out, "Ray is up")
        yield command, {**env, "RAY_ADDRESS": address.read_text().strip()}
    finally:
        command.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(ray_head: tuple[Command, dict[str, str]]) -> dict[str, str]:
    """The environment that reaches the Ray cluster that tests share."""
    return ray_head[1]


# The first argument of a Command is `launch`; here it is Ray's own command line that follows it.
_RAY_START = (
    "import sys; from ray.scripts.scripts import main; sys.argv = ['ray', 'start', *sys.argv[2:]]; "
    "main()"
)
