"""Ray on a node of a SLURM job, without SLURM: it comes and goes without trace."""

import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.slurm.node import RayLost, ray_node

pytestmark = pytest.mark.cluster


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made: short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="sn-", dir="/tmp") as made:
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


def test_two_heads_on_one_machine_come_and_go(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    processes: list[psutil.Process] = []
    common: Any = {"own_address": "127.0.0.1", "head": None, "interrupted": lambda: False}
    with (
        ray_node(log_folder=tmp_path / "a", **common) as first,
        ray_node(log_folder=tmp_path / "b", **common) as second,
    ):
        assert first.address != second.address
        for node in (first, second):
            host, _, port = str(node.address).rpartition(":")
            socket.create_connection((host, int(port)), 5).close()
            processes += psutil.Process(node.process.pid).children(recursive=True)
        assert len([p for p in processes if "raylet" in p.name()]) == 2
        assert len(list(folder.glob("sparsebert-*/session_2*"))) == 2
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert not list(folder.iterdir())
    for name in ("a", "b"):
        assert list((tmp_path / name).glob("raylet*"))


def test_a_start_that_fails_is_tried_again_and_told(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "none")  # which Ray refuses
    with (
        pytest.raises(RayLost, match=f"does not start at 127.0.0.1: its logs are in {tmp_path}"),
        ray_node(
            own_address="127.0.0.1", head=None, log_folder=tmp_path, interrupted=lambda: False
        ),
    ):
        pass
    assert (tmp_path / "ray-start.log").read_text().count("Invalid value for '--num-cpus'") == 3
    assert not list(folder.iterdir())


def test_an_interrupted_start_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    with (
        pytest.raises(InterruptedError),
        ray_node(own_address="127.0.0.1", head=None, log_folder=tmp_path, interrupted=lambda: True),
    ):
        pass
    assert not list(folder.iterdir())
