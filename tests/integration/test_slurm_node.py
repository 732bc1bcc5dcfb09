"""Ray on a node of a SLURM job, without SLURM: it comes and goes without trace."""

import secrets
import socket
import time
from pathlib import Path

import psutil
import pytest

from launch.ray_cluster import short_temporary_folder
from launch.slurm.node import ray_node


def test_two_heads_on_one_machine_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    folders = Path(short_temporary_folder())
    before = set(folders.glob("sparsebert-*"))
    processes: list[psutil.Process] = []
    with (
        ray_node(own_address="127.0.0.1", head=None, log_folder=tmp_path / "a") as first,
        ray_node(own_address="127.0.0.1", head=None, log_folder=tmp_path / "b") as second,
    ):
        deadline = time.monotonic() + 180
        while first.address is None or second.address is None:
            ended = first.has_ended() or second.has_ended()
            assert not ended and time.monotonic() < deadline, [
                file.read_text() for file in tmp_path.glob("*/ray-start.log")
            ]
            time.sleep(0.1)
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
