"""What the benchmark found: figures, the machine, and both as text or JSON."""

import importlib.metadata
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsebert.inference.bench_rounds import MOST_OTHER_LOAD, Timing

_PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Figure:
    """One engine at one shape."""

    engine: str
    batch: int
    length: int
    threads: int
    rounds: int  # kept
    median_ms: float
    fastest_ms: float
    # The engine's time over that of `sparse`, in the same round: median, 10th and 90th percentile.
    over_sparse: float | None
    over_sparse_low: float | None
    over_sparse_high: float | None
    # The same of processor time instead of time, which preemption does not change; one thread only.
    processor_ms: float | None
    processor_over_sparse: float | None
    largest_difference: float  # to torch fp32's last_hidden_state


@dataclass(frozen=True)
class Report:
    """Everything that --json prints."""

    model: str
    density: float
    processor: str
    cores: int
    kernel_level: str
    versions: dict[str, str]
    other_load: float  # cores, mean over the kept rounds
    rounds_left_out: int
    figures: list[Figure]


def sum_up(
    engine: str, shape: tuple[int, int, int], times: dict[str, list[Timing]], difference: float
) -> Figure:
    """The figures of one engine from its times and those of `sparse` in the same rounds.

    Args:
        engine: its name.
        shape: batch, length, threads.
        times: of every engine, by kept round.
        difference: the largest to torch fp32's last_hidden_state.
    """
    own, sparse = times[engine], times.get("sparse")
    wall = [t.wall for t in own]
    low = middle = high = processor_ratio = None
    if sparse is not None:
        ratios = [a.wall / b.wall for a, b in zip(own, sparse, strict=True)]
        low, middle, high = (float(q) for q in np.percentile(ratios, [10, 50, 90]))
    # Idle workers of other engines spin, so processor time means little on more threads.
    processor = 1e3 * statistics.median(t.processor for t in own) if shape[2] == 1 else None
    if sparse is not None and shape[2] == 1:
        pairs = zip(own, sparse, strict=True)
        processor_ratio = statistics.median(a.processor / b.processor for a, b in pairs)
    return Figure(
        engine=engine,
        batch=shape[0],
        length=shape[1],
        threads=shape[2],
        rounds=len(own),
        median_ms=1e3 * statistics.median(wall),
        fastest_ms=1e3 * min(wall),
        over_sparse=middle,
        over_sparse_low=low,
        over_sparse_high=high,
        processor_ms=processor,
        processor_over_sparse=processor_ratio,
        largest_difference=difference,
    )


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of the engines that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def render(report: Report) -> str:
    """The report as text."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [
        f"{report.model}: encoder density {report.density:.3f}",
        f"{report.processor}, {report.cores} cores, kernel level {report.kernel_level}; {versions}",
        f"other processes took {report.other_load:.2f} core; {report.rounds_left_out} rounds with "
        f"more than {MOST_OTHER_LOAD} were left out",
        "",
        f"{'engine':<18}{'batch':>6}{'seq':>5}{'threads':>8}{'median ms':>11}{'fastest':>9}"
        f"{'x sparse':>10}{'10-90 %':>14}{'CPU ms':>9}{'x sparse':>10}"
        f"{'difference':>12}{'rounds':>8}",
    ]
    for f in report.figures:
        ratio = spread = processor = processor_ratio = "-"
        if f.processor_ms is not None:
            processor = f"{f.processor_ms:.2f}"
        if f.processor_over_sparse is not None:
            processor_ratio = f"{f.processor_over_sparse:.2f}"
        if f.over_sparse is not None:
            ratio = f"{f.over_sparse:.2f}"
            spread = f"{f.over_sparse_low:.2f}-{f.over_sparse_high:.2f}"
        lines.append(
            f"{f.engine:<18}{f.batch:>6}{f.length:>5}{f.threads:>8}{f.median_ms:>11.2f}"
            f"{f.fastest_ms:>9.2f}{ratio:>10}{spread:>14}"
            f"{processor:>9}{processor_ratio:>10}{f.largest_difference:>12.1e}{f.rounds:>8}"
        )
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON's types."""
    return asdict(report)
