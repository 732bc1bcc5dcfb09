"""Whether what runs on the GPU is right: the tests that need one, and a training run beside the
CPU's.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def tests(*, device: str, smoke: bool, of: str) -> Iterator[dict[str, Any]]:
    """The tests that are written for a GPU, by pytest; without one they are collected and skip."""
    paths = {
        # The host's passes and numpy are the oracles. These first: where the kernels do not run,
        # the other tests and all figures of pruning are about something else.
        "kernels": [
            "tests/gpu/test_sparsity_gpu.py",
            "tests/unit/sparsity/selection/test_device.py",
        ],
        "training": [
            "tests/gpu/test_engine_gpu.py",
            "tests/gpu/test_attention_gpu.py",
            "tests/gpu/test_masked_loss_gpu.py",
        ],
    }[of]  # tests/gpu/test_training_gpu.py is the case `steps`
    if smoke:  # the unit tests have their own place in the suite
        paths = [path for path in paths if path.startswith("tests/gpu")]
    counts = run_pytest(paths)
    failed = counts.pop("names of failed tests")
    yield counts
    if failed:
        raise AssertionError(f"tests failed: {', '.join(failed)}")
    if device == "cuda" and counts["skipped"]:
        raise AssertionError(f"{counts['skipped']} tests were skipped though there is a GPU")


def run_pytest(paths: Sequence[str]) -> dict[str, Any]:
    """Counts of passed, failed and skipped tests, and the names of those that failed.

    Raises:
        RuntimeError: no test ran to its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-v", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, *paths], cwd=ROOT)
        if not report.exists():
            raise RuntimeError(f"pytest ended with code {done.returncode} and no report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        str(case.get("name"))
        for case in cases
        if any(part.tag in ("failure", "error") for part in case)
    ]
    skipped = sum(part.tag == "skipped" for case in cases for part in case)
    if not cases or (done.returncode and not failed):
        raise RuntimeError(f"pytest ended with code {done.returncode} after {len(cases)} tests")
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "names of failed tests": failed,
    }


def steps(*, device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """200 steps at each stage: the CPU's losses within a bound, and the CPU's masks exactly."""
    from tests.gpu import comparison

    count = 4 if smoke else 200
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cpu.jsonl"
        process = comparison.train_on_cpu(file, count)
        ours = {setup: comparison.train(device, setup, steps=count) for setup in comparison.SETUPS}
        if process.wait():
            raise RuntimeError(f"the runs on the CPU ended with code {process.returncode}")
        theirs = comparison.read_runs(file)
    yield {"losses": {setup.name: run["losses"] for setup, run in ours.items()}}
    for setup, run in ours.items():
        difference = comparison.compare(setup, run, theirs[setup.on_cpu.name])
        yield {f"{setup.name}: losses differ by": difference}
    yield {"masks": "the CPU's", "digest": ours[comparison.SETUPS[0]]["digests"]["end"]}
