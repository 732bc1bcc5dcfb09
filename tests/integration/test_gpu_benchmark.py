"""benchmarks/gpu.py with every case, on the CPU and with tiny sizes, as on a machine with a GPU:
without Ray and the other packages that only the command line or the tests need.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import OFTEN_MISSING
from benchmarks.gpu_cases.cases import CASES

ROOT = Path(__file__).parents[2]
NOT_THERE = {"ray", "datasets", "defusedxml", "seqeval", "flask", "flask_cors", "moto", "boto3"}
BLOCKED = """
import importlib.machinery, os, sys
find_spec = importlib.machinery.PathFinder.find_spec
def find_others(cls, name, path=None, target=None):
    blocked = os.environ["BLOCKED_PACKAGES"].split(",")
    return None if name.partition(".")[0] in blocked else find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_others)
"""


def run(
    folder: Path, *arguments: str, blocked: set[str] = NOT_THERE
) -> subprocess.CompletedProcess[str]:
    """The program where the packages `blocked` are not installed."""
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", str(folder / "out"), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            "BLOCKED_PACKAGES": ",".join(blocked),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a smoke run, and what it printed."""
    pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs it: make setup")
    folder = tmp_path_factory.mktemp("gpu")
    done = run(folder, "--smoke", "--jobs", "2")
    log = folder / "out/log.txt"
    text = log.read_text()[-5000:] if log.exists() else ""
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr + text
    return folder, done.stdout


def figures_of(folder: Path) -> dict[str, dict[str, Any]]:
    results = json.loads((folder / "out/results.json").read_text())["results"]
    return {r["case"]: r["figures"] for r in results if r["status"] == "measured"}


@pytest.mark.cluster
def test_every_case_runs(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    figures = figures_of(folder)
    assert set(figures) == {case.name for case in CASES} and len(figures) == len(CASES)
    table = (folder / "out/table.md").read_text()
    assert printed.endswith(table + "\n")
    for words in (" CPU, ", "torch ", "deepspeed 0.", "Commit ", "gpu.py", *figures):
        assert words in table
    assert all(figures[case.name] for case in CASES)


@pytest.mark.cluster
def test_the_figures_are_of_what_they_say(smoke: tuple[Path, str]) -> None:
    figures = figures_of(smoke[0])
    # The GPU's tests are collected without Ray, and skip here.
    for case in ("tests of=kernels", "tests of=training"):
        assert figures[case]["skipped"] > 5 and figures[case]["passed"] == 0
    # The CPU against itself: bit for bit, but for stage 3's order of sums.
    steps = figures["steps"]
    differences = {name: value for name, value in steps.items() if "losses differ" in name}
    assert len(differences) == 7 and max(differences.values()) < 1e-6
    assert all(value == 0 for name, value in differences.items() if "stage 2" in name)
    losses = steps["losses"]["stage 2 fp32 one_shot"]
    assert len(set(losses)) == len(losses) == 4
    for name, values in figures.items():
        if name.startswith(("train ", "trainer ")):
            assert values["tokens/s"] > 0
        if name.startswith("threshold "):
            ratio = values["torch.sort, ms"] / values["threshold, ms"]
            assert values["times as fast as torch.sort"] == pytest.approx(ratio)
    assert figures["profile rows=256"]["longest"]


@pytest.mark.cluster
def test_what_is_measured_is_not_measured_again(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    before = (folder / "out/results.json").read_bytes()
    again = run(folder, "--smoke")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"0 of {len(CASES)} cases are to be measured" in again.stdout
    assert (folder / "out/results.json").read_bytes() == before


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--smoke", blocked={*OFTEN_MISSING})
    assert done.returncode == 2 and done.stdout == ""
    assert ", ".join(OFTEN_MISSING.values()) in done.stderr
    assert "benchmarks/README.md" in done.stderr and done.stderr.count("\n") == 1
    help_text = run(tmp_path, "--help").stdout
    readme = (ROOT / "benchmarks/README.md").read_text()
    for package in OFTEN_MISSING.values():
        assert package in help_text and package in readme


def test_without_a_gpu_it_says_what_there_is_to_do(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs it: make setup")
    done = run(tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == "error: torch finds no CUDA GPU: pass --smoke to try the cases on the CPU\n"
    )
