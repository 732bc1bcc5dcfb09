"""When a job that SLURM warned queues itself no more."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from launch.slurm import job
from training.folder import RunFolder


def test_three_starts_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "demo")
    (folder.path / "slurm").mkdir(parents=True)
    newest = {"step": 0}
    monkeypatch.setattr(job, "_newest_step", lambda _: newest["step"])
    this = cast(Any, SimpleNamespace(id="7"))
    other = cast(Any, SimpleNamespace(id="8"))
    assert [job._is_stuck(folder, this, 0) for _ in range(2)] == [False, False]
    assert not job._is_stuck(folder, other, 0), "each job counts its own"
    newest["step"] = 50
    assert not job._is_stuck(folder, this, 0), "progress"
    assert [job._is_stuck(folder, this, 50) for _ in range(3)] == [False, False, True]
