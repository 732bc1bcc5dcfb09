"""Ray on a node of a SLURM job, without SLURM: it comes and goes without trace."""

import secrets
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.ray_cluster import short_temporary_folder
from launch.slurm.node import RayLost, ray_node


def test_two_heads_on_one_machine_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    folders = Path(short_temporary_folder())
    before = set(folders.glob("sparsebert-*"))
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
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert set(folders.glob("sparsebert-*")) <= before
    for name in ("a", "b"):
        assert list((tmp_path / name).glob("raylet*"))


def test_a_start_that_fails_is_tried_again_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "none")  # which Ray refuses
    folders = Path(short_temporary_folder())
    before = set(folders.glob("sparsebert-*"))
    with (
        pytest.raises(RayLost, match=f"does not start at 127.0.0.1: its logs are in {tmp_path}"),
        ray_node(
            own_address="127.0.0.1", head=None, log_folder=tmp_path, interrupted=lambda: False
        ),
    ):
        pass
    assert (tmp_path / "ray-start.log").read_text().count("Invalid value for '--num-cpus'") == 3
    assert set(folders.glob("sparsebert-*")) <= before


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    folders = Path(short_temporary_folder())
    before = set(folders.glob("sparsebert-*"))
    with (
        pytest.raises(InterruptedError),
        ray_node(own_address="127.0.0.1", head=None, log_folder=tmp_path, interrupted=lambda: True),
    ):
        pass
    assert set(folders.glob("sparsebert-*")) <= before
