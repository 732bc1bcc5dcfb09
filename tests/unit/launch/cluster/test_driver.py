"""The parts of the Ray driver that need no Ray; tests/integration has the rest."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed.checkpoint.manifest import BadCheckpoint, write_manifest
from distributed.errors import BadInput
from launch.cluster.driver import Failures
from launch.cluster.failures import FILE_NAME, Failure, FailureTail, find_cause
from launch.cluster.nodes import choose_gpu, count_places, describe_nodes
from training.config import LaunchConfig
from training.folder import RunFolder

DIED = RuntimeError(
    "A worker health check failed.\nThe actor died unexpectedly before finishing this task.\n"
    "exit detail: Worker unexpectedly exits with a connection error code 2."
)
LOST = RuntimeError("[../gloo/pair.cc:534] Connection closed by peer [127.0.0.1]")
ODD = ValueError("odd\nand long")
TRACEBACK = RuntimeError("Traceback (most recent call last):\n  File\nKeyError: 'x'\n")


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ({0: LOST, 1: DIED}, Failure(1, "its process died", died=True)),
        ({0: LOST, 2: ODD, 1: BadInput("lower x")}, Failure(1, "lower x", bad_input=True)),
        ({0: BadCheckpoint("no file")}, Failure(0, "no file", bad_input=True)),
        ({1: ODD, 0: LOST}, Failure(1, "ValueError: odd")),
        ({0: TRACEBACK}, Failure(0, "KeyError: 'x'")),
        ({0: TimeoutError()}, Failure(0, "TimeoutError: ")),
    ],
)
def test_the_cause_is_found(errors: dict[int, BaseException], cause: Failure) -> None:
    assert find_cause(errors) == cause


def test_failures_are_read_once_and_whole(tmp_path: Path) -> None:
    tail = FailureTail(tmp_path)
    assert tail.poll() == []
    first, second = (json.dumps(vars(Failure(rank, "gone"))) for rank in (0, 1))
    (tmp_path / FILE_NAME).write_text(f"{first}\n{second[:9]}")
    assert tail.poll() == [Failure(0, "gone")]
    (tmp_path / FILE_NAME).write_text(f"{first}\n{second}\n")
    assert tail.poll() == [Failure(1, "gone")]
    assert tail.poll() == []


def test_a_restart_is_told_while_there_are_any_left(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = RunFolder(tmp_path)
    step = folder.checkpoints / "step-00000020"
    step.mkdir(parents=True)
    fields = {"step": 20, "world_size": 1, "optimizer_steps": 20}
    write_manifest(step, {**fields, "parameters": {}, "files": {}, "state": {}})
    display: Any = SimpleNamespace(note=notes.append)
    failures = Failures(tmp_path, folder, 1, display, lambda: False)
    for rank in (0, 1):
        with open(tmp_path / FILE_NAME, "a") as file:
            file.write(json.dumps(vars(Failure(rank, f"gone {rank}"))) + "\n")
        assert not failures.look()
    assert notes == ["worker 0: gone 0; restarting from step 20 (0 restart(s) left)"]
    assert failures.last == Failure(1, "gone 1")
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write(json.dumps(vars(Failure(0, "mend it", bad_input=True))) + "\n")
    assert failures.look()
    assert failures.bad_input == Failure(0, "mend it", bad_input=True)
    assert len(notes) == 1


def test_a_group_that_fails_on_the_way_to_a_stop_is_not_started_again(tmp_path: Path) -> None:
    notes: list[str] = []
    display: Any = SimpleNamespace(note=notes.append)
    failures = Failures(tmp_path, RunFolder(tmp_path), 9, display, lambda: True)
    assert not failures.look()
    (tmp_path / FILE_NAME).write_text(json.dumps(vars(Failure(1, "gone"))) + "\n")
    assert failures.look() and failures.has_stopped
    assert notes == ["worker 1: gone; not restarting, as a stop was asked for"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([Failure(1, "a mask has changed", final=True)], "worker 1: a mask has changed"),
        ([Failure(0, "KeyError: 1")] * 2, "2 times in a row after step 0 (worker 0: KeyError: 1)"),
    ],
)
def test_what_a_restart_cannot_mend_ends_the_run(
    tmp_path: Path, written: list[Failure], words: str
) -> None:
    display: Any = SimpleNamespace(note=lambda _: None)
    failures = Failures(tmp_path, RunFolder(tmp_path), 9, display, lambda: False)
    lines = [json.dumps(vars(failure)) + "\n" for failure in written]
    (tmp_path / FILE_NAME).write_text("".join(lines))
    assert failures.look()
    assert failures.diagnosis is not None and words in failures.diagnosis


@pytest.mark.parametrize(
    ("cpus_per_worker", "nodes", "places"),
    [
        (1, [{"CPU": 2.0}], 2),
        (1.5, [{"CPU": 2.0}, {"CPU": 4.0}], 3),  # a worker is not split over two nodes
        (0.1, [{"CPU": 0.3}], 3),
        (1, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], 16),
        (1, [{"GPU": 2.0}], 0),
    ],
)
def test_places(cpus_per_worker: float, nodes: list[dict[str, float]], places: int) -> None:
    launch = LaunchConfig(cpus_per_worker=cpus_per_worker)
    assert count_places(launch, nodes, use_gpu=False) == places


def test_places_with_gpus() -> None:
    launch, nodes = LaunchConfig(), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 4.0}]
    assert choose_gpu(launch, nodes)
    assert not choose_gpu(launch, [{"CPU": 8.0}])
    assert not choose_gpu(LaunchConfig(use_gpu=False), nodes)
    assert count_places(launch, nodes, use_gpu=True) == 3


def test_a_cluster_in_words() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {}]
    assert describe_nodes(nodes) == (
        "4 node(s): 2 with 8 CPUs and 2 GPUs, 1 with 4 CPUs and 0 GPUs, 1 with 0 CPUs and 0 GPUs"
    )
