import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distributed.world import Topology, detect_topology

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ROOT = Path(__file__).parents[3]


def test_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in zip(VARIABLES, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert detect_topology(use_gpu=False) == Topology(5, 8, 1, torch.device("cpu"))
    assert not detect_topology(use_gpu=False).is_first


def test_one_process_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert detect_topology(use_gpu=False) == Topology(0, 1, 0, torch.device("cpu"))
    assert detect_topology(use_gpu=False).is_first


SCRIPT = """
import torch, torch.distributed as dist
from distributed.world import detect_topology, ensure_process_group
topology = detect_topology(use_gpu=False)
ensure_process_group(topology)
ensure_process_group(topology)  # a launcher may have joined already
total = torch.ones(1)
dist.all_reduce(total)
print(dist.get_backend(), dist.get_rank(), dist.get_world_size(), total.item())
dist.destroy_process_group()
"""


def joined(**environment: str) -> list[str]:
    plain = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "MASTER_ADDR")}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**plain, "CUDA_VISIBLE_DEVICES": "", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_a_group_of_one_needs_no_address() -> None:
    assert joined() == ["gloo", "0", "1", "1.0"]
