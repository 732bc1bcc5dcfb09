"""How processes find each other: who waits says for whom, and nobody waits for nobody."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREFIXES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "SLURM_", "TORCHELASTIC_")

START = """
import sys, torch, torch.distributed as dist
from datetime import timedelta
from distributed import world
from distributed.errors import BadInput
world._PATIENCE_SECONDS, world._REPEAT_SECONDS = 0.5, 0.5
world._TIMEOUT = timedelta(seconds=float(sys.argv[1]))
try:
    mine = world.detect_topology(use_gpu=False)
    world.ensure_process_group(mine)
except BadInput as error:
    sys.exit(f"error: {error}")
total = torch.ones(1)
dist.all_reduce(total)
print(mine.rank, dist.get_world_size(), total.item())
dist.destroy_process_group()
"""


def plain_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(PREFIXES)}


def start(seconds: float, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", START, str(seconds)],
        env={**plain_environment(), "CUDA_VISIBLE_DEVICES": "", **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("first", [0, 2])
def test_a_start_says_for_whom_it_waits(first: int) -> None:
    """One of three comes late: the one that is there says so, and all join in the end."""
    meet = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = {first: start(120, RANK=str(first), **meet)}
    told = processes[first].stderr
    assert told is not None
    expected = (
        "waiting for 2 of 3 processes (WORLD_SIZE): rank 1, 2\n"
        if first == 0
        else f"waiting for a connection to 127.0.0.1:{meet['MASTER_PORT']} (MASTER_ADDR, "
        "MASTER_PORT), where the process of rank 0 of 3 (WORLD_SIZE) listens\n"
    )
    line = next(line for line in told if line.startswith("waiting"))  # torch may warn before
    assert line == expected
    rest: list[str] = []
    threading.Thread(target=lambda: rest.extend(told)).start()
    second, third = {0, 1, 2} - {first}
    processes[second] = start(120, RANK=str(second), **meet)
    deadline = time.monotonic() + 60
    while not any(line.startswith("waiting for 1 of 3") for line in rest):
        assert time.monotonic() < deadline, rest
        time.sleep(0.05)
    processes[third] = start(120, RANK=str(third), **meet)
    for rank, process in processes.items():
        out = process.stdout
        assert process.wait(120) == 0 and out is not None
        assert out.read().split() == [str(rank), "3", "3.0"]


def test_a_start_for_which_nobody_comes_ends() -> None:
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    process = start(2, RANK="0", **meet)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: 1 of 2 processes (WORLD_SIZE): rank 1 did not come within" in told
    assert "Traceback" not in told


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = start(20, RANK="0", **meet)
        _, told = process.communicate(timeout=120)
    assert f"error: the processes cannot meet at 127.0.0.1:{port}" in told
    assert process.returncode == 1 and "Traceback" not in told


@pytest.mark.parametrize(
    ("command", "variables", "told"),
    [
        (("pretrain", "{config}", "--local"), {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK"),
        (("pretrain", "{config}", "--local"), {"WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
        (("prune", "{config}", "out", "--sparsity", "0.9"), {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2"),
        (
            ("prune", "{config}", "out", "--sparsity", "0.9"),
            {"WORLD_SIZE": "2", "RANK": "1"},  # the second of nobody: it must not leave in silence
            "WORLD_SIZE is 2 and MASTER_ADDR is not set",
        ),
        (
            ("prune", "{config}", "out", "--sparsity", "0.9"),
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "mpirun started 2 processes",
        ),
    ],
)
def test_commands_do_not_wait_for_nobody(
    command: tuple[str, ...], variables: dict[str, str], told: str, tmp_path: Path
) -> None:
    config = ROOT / "configs" / "demo_control.yaml"
    arguments = [part.format(config=config) for part in command]
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        env={**plain_environment(), "PYTHONPATH": str(ROOT), **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_loop_of_ones_own_does_not_wait_for_nobody() -> None:
    done = subprocess.run(
        [sys.executable, "examples/own_loop.py"],
        env={**plain_environment(), "WORLD_SIZE": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: WORLD_SIZE is 2 and RANK is not set: start the processes")


def test_one_process_asks_no_address() -> None:
    """Whatever an earlier job left in MASTER_ADDR: 192.0.2.1 is nobody's (RFC 5737)."""
    process = start(120, WORLD_SIZE="1", MASTER_ADDR="192.0.2.1", MASTER_PORT="29500")
    out, told = process.communicate(timeout=60)
    assert out.split() == ["0", "1", "1.0"] and told == ""
