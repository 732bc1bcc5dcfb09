"""The example of a loop of one's own runs as the README says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("processes", "stage"), [(1, 2), (2, 3)])
def test_own_loop(processes: int, stage: int) -> None:
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone",
                                          f"--nproc-per-node={processes}"]  # fmt: skip
    result = subprocess.run(
        [sys.executable, *launcher, "examples/own_loop.py", f"--stage={stage}", "--steps=62"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    rows = re.findall(r"step +(\d+)  loss ([\d.]+)  sparsity ([\d.]+)  digest (\w+)", result.stdout)
    assert [int(row[0]) for row in rows] == [0, 30, 60, 61]
    assert float(rows[-1][1]) < float(rows[0][1]) - 0.5, "it learns while it is pruned"
    assert rows[0][2] == "0.0000" and rows[-1][2] == "0.8000"
    assert "every pruned weight is zero on every rank: True" in result.stdout
