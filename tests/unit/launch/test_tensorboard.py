"""`sparsebert tensorboard`: the real server over runs that were restarted."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed.errors import BadInput
from launch.tensorboard import choose_port, find_logs
from training.sinks import Board

ROOT = Path(__file__).parents[3]


def write_run(run: Path, starts: list[tuple[int, int]]) -> None:
    """A run whose starts each log from the first to the last of these steps; the value is 100 x the
    start's number + the step. None is closed: they died."""
    for number, (first, last) in enumerate(starts):
        if number:
            time.sleep(1 - time.time() % 1)  # files are ordered by the second of their start
        text = "name: x\nseed: 1\n"
        board = Board(
            run / "tensorboard",
            start_step=first - 1,
            config_text=text,
            digests={},
            matrix_titles={},
        )
        for step in range(first, last + 1):
            board.write({"step": step, "train/mlm_loss": 100 * number + step}, step)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = tmp_path_factory.mktemp("board") / "runs"
    write_run(runs / "restarted", [(1, 6), (4, 9), (8, 12)])
    write_run(runs / "plain", [(1, 3)])
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "tensorboard", str(runs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first, tunnel = process.stdout.readline(), process.stdout.readline()
    url = first.split()[-1].partition("#")[0]
    port = url.rpartition(":")[2].strip("/")
    assert first.startswith("2 run(s), Ctrl-C ends it: http://127.0.0.1:")
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel
    yield url
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def fetch(url: str) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                found = json.load(answer)
                if found or time.monotonic() > deadline:
                    return found
        except OSError:
            assert time.monotonic() < deadline, url
        time.sleep(0.2)


def test_a_restarted_run_is_one_curve_under_its_name(server: str) -> None:
    assert sorted(fetch(f"{server}data/runs")) == ["plain", "restarted"]
    query = "data/plugin/scalars/scalars?run=restarted&tag=train%2Fmlm_loss"
    points = [(step, value) for _, step, value in fetch(server + query)]
    expected = [(n, n) for n in (1, 2, 3)] + [(n, 100 + n) for n in (4, 5, 6, 7)]
    assert points == expected + [(n, 200 + n) for n in range(8, 13)]


def test_the_layout_is_served(server: str) -> None:
    layout = fetch(f"{server}data/plugin/custom_scalars/layout")
    charts = [chart["title"] for chart in layout["category"][0]["chart"]]
    assert charts == [
        "training loss",
        "validation losses",
        "sparsity, target and actual",
        "tokens per second",
        "gradient norm",
    ]


def test_only_this_machine_can_ask(server: str) -> None:
    fetch(f"{server}data/runs")
    port = int(server.rpartition(":")[2].strip("/"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.1", 9))  # sends nothing; tells our address, if we have a way out
        address = asking.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((address, port), 5)


def test_runs_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run" / "tensorboard").mkdir(parents=True)
    logs = find_logs([tmp_path / "a", tmp_path / "b" / "run", tmp_path / "a" / "run"])
    assert logs == {
        "run": tmp_path / "a" / "run" / "tensorboard",
        "run-of-b": tmp_path / "b" / "run" / "tensorboard",
    }


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no-such-run does not exist"):
        find_logs([tmp_path / "no-such-run"])
    with pytest.raises(BadInput, match="has no tensorboard folder"):
        find_logs([tmp_path])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port is {port}, which is in use"):
            choose_port(port)
