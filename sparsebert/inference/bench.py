"""How fast a BERT folder runs here, sparse and by other engines.

    python -m sparsebert.inference.bench FOLDER --engines sparse,torch,onnxruntime --batch 1,8

Engines take turns in rounds, so that what the machine does besides meets all of them alike, and the
result is the median over rounds of the ratio to `sparse`. A round during which other processes took
more than 0.15 core is left out. Every engine gets the same number of threads.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from sparsebert.inference.convert import find_bert
from sparsebert.inference.errors import BadInput
from sparsebert.inference.levels import choose_level
from sparsebert.inference.peers import BUILDERS, Array, Engine, Workshop
from sparsebert.inference.sparse_file import SPARSE_FILE, load_sparse

MOST_OTHER_LOAD = 0.15  # cores
_PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf")
_LEAST_SECONDS = 0.1  # an engine runs for that long in a round: /proc counts in hundredths
_PAUSE_SECONDS = 0.06  # an engine's own threads may spin for a while after its call


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
class Timing:
    """Seconds of one call: on the clock, and of processors."""

    wall: float
    processor: float


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


def run_bench(
    folder: str | Path | BertModel,
    *,
    engines: Sequence[str] = ("sparse", "torch"),
    batches: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (16, 128),
    threads: int = 1,
    rounds: int = 15,
    limit_seconds: float = 120.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure.

    Args:
        folder: a Hugging Face BERT folder, a sparse folder, or a dense BertModel.
        engines: names of `peers.BUILDERS`.
        batches: sequences a call.
        lengths: tokens a sequence, all of them real.
        threads: of every engine.
        rounds: to keep, for each shape.
        limit_seconds: stop a shape after that long, with what was kept by then.
        tell: gets a line of progress.
    """
    unknown = [name for name in engines if name not in BUILDERS]
    if unknown:
        raise BadInput(f"there is no engine {unknown[0]}: choose from {', '.join(BUILDERS)}")
    build_model, name = _model_builder(folder)
    model = build_model()
    longest = model.config.max_position_embeddings
    if max(lengths) > longest:
        raise BadInput(f"the model takes at most {longest} tokens, not {max(lengths)}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    figures: list[Figure] = []
    loads: list[float] = []
    left_out = 0
    try:
        with tempfile.TemporaryDirectory() as temporary:
            shop = Workshop(build_model, threads, Path(temporary))
            built = {}
            for engine in engines:
                tell(f"building {engine}")
                built[engine] = BUILDERS[engine](shop)
            reference = BUILDERS["torch"](shop)
            generator = np.random.default_rng(0)
            for batch in batches:
                for length in lengths:
                    tell(f"batch {batch}, {length} tokens")
                    ids = generator.integers(0, model.config.vocab_size, (batch, length))
                    inputs = ids, np.ones_like(ids)
                    wanted = reference(*inputs)
                    differences = {
                        engine: float(np.abs(run(*inputs) - wanted).max())
                        for engine, run in built.items()
                    }
                    times, kept, lost = _measure(built, inputs, rounds, limit_seconds)
                    loads += kept
                    left_out += lost
                    shape = (batch, length, threads)
                    figures += [_sum_up(e, shape, times, differences[e]) for e in built]
    finally:
        torch.set_num_threads(before)
    return Report(
        model=name,
        density=_density(model),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        kernel_level=choose_level(),
        versions=_versions(),
        other_load=statistics.fmean(loads) if loads else float("nan"),
        rounds_left_out=left_out,
        figures=figures,
    )


def _model_builder(folder: str | Path | BertModel) -> tuple[Callable[[], BertModel], str]:
    import copy

    if isinstance(folder, BertModel):
        dense = folder
        return lambda: copy.deepcopy(dense), "model"
    path = Path(folder)
    if (path / SPARSE_FILE).is_file():
        return lambda: find_bert(load_sparse(path, dense=True)), str(path)
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} is no Hugging Face folder: it has no config.json")
    kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "bert":
        raise BadInput(f"{path} is a {kind}, and only BERT can be made sparse: give a BERT folder")

    def build() -> BertModel:
        return BertModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()

    return build, str(path)


def _measure(
    engines: dict[str, Engine], inputs: tuple[Array, Array], rounds: int, limit_seconds: float
) -> tuple[dict[str, list["Timing"]], list[float], int]:
    """Times of a call by engine and kept round, the load of those rounds, rounds left out.

    On a machine that never gets quiet the least disturbed rounds are kept, and their load tells.
    """
    calls = {}
    for name, run in engines.items():
        run(*inputs)
        start = time.perf_counter()
        run(*inputs)
        calls[name] = max(1, round(_LEAST_SECONDS / (time.perf_counter() - start)))
    found: list[tuple[float, dict[str, Timing]]] = []
    end = time.monotonic() + limit_seconds
    while sum(load <= MOST_OTHER_LOAD for load, _ in found) < rounds and time.monotonic() < end:
        busy, own, start_of_round = _busy_seconds(), _own_seconds(), time.perf_counter()
        times = {}
        for name, run in engines.items():
            time.sleep(_PAUSE_SECONDS)
            run(*inputs)
            start, start_processor = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                run(*inputs)
            spent, spent_processor = (
                time.perf_counter() - start,
                time.process_time() - start_processor,
            )
            times[name] = Timing(spent / calls[name], spent_processor / calls[name])
        wall = time.perf_counter() - start_of_round
        others = (_busy_seconds() - busy) - (_own_seconds() - own)
        found.append((max(0.0, others / wall), times))
    quiet = [pair for pair in found if pair[0] <= MOST_OTHER_LOAD]
    if len(quiet) < 3:
        quiet = sorted(found, key=lambda pair: pair[0])[: max(3, len(found) // 4)]
    kept = {name: [times[name] for _, times in quiet] for name in engines}
    return kept, [load for load, _ in quiet], len(found) - len(quiet)


def _busy_seconds() -> float:
    """Of all cores since the start, by all processes; 0 where it cannot be known."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, first.split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _sum_up(
    engine: str, shape: tuple[int, int, int], times: dict[str, list[Timing]], difference: float
) -> Figure:
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


def _density(model: BertModel) -> float:
    weights = [p for p in model.encoder.parameters() if p.dim() == 2]
    total = sum(p.numel() for p in weights)
    return sum(int(p.count_nonzero()) for p in weights) / total if total else 0.0


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
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


def parse_numbers(text: str, option: str) -> list[int]:
    """`1,8` as numbers.

    Raises:
        BadInput: it is something else; `option` is named.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise BadInput(f"{option} is {text!r}: give positive numbers with commas, such as 1,8")
    return numbers


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsebert.inference.bench", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="a Hugging Face BERT folder, sparse or dense")
    parser.add_argument("--engines", default="sparse,torch", help=f"of {', '.join(BUILDERS)}")
    parser.add_argument("--batch", default="1,8", help="sequences a call")
    parser.add_argument("--seq", default="16,128", help="tokens a sequence")
    parser.add_argument("--threads", type=int, default=1, help="of every engine")
    parser.add_argument("--rounds", type=int, default=15, help="to keep for each shape")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most for each shape")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    try:
        report = run_bench(
            options.folder,
            engines=options.engines.split(","),
            batches=parse_numbers(options.batch, "--batch"),
            lengths=parse_numbers(options.seq, "--seq"),
            threads=options.threads,
            rounds=options.rounds,
            limit_seconds=options.seconds,
            tell=lambda line: print(line, file=sys.stderr),
        )
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(as_json(report), indent=1) if options.json else render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
