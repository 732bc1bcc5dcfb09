"""How fast a BERT folder runs here, sparse and by other engines.

    python -m sparsebert.inference.bench FOLDER --engines sparse,torch,onnxruntime --batch 1,8

Engines take turns in rounds, so that what the machine does besides meets all of them alike, and the
result is the median over rounds of the ratio to `sparse`. A round during which other processes took
more than 0.15 core is left out. Every engine gets the same number of threads.
"""

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel
from transformers.utils import logging as hf_logging

from sparsebert.inference.bench_report import (
    Figure,
    Report,
    as_json,
    package_versions,
    processor_name,
    render,
    sum_up,
)
from sparsebert.inference.bench_rounds import measure
from sparsebert.inference.convert import find_bert
from sparsebert.inference.errors import BadInput
from sparsebert.inference.library import load_kernel
from sparsebert.inference.peers import BUILDERS, Workshop
from sparsebert.inference.sparse_file import SPARSE_FILE
from sparsebert.inference.sparse_folder import load_sparse


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
                    times, kept, lost = measure(built, inputs, rounds, limit_seconds)
                    loads += kept
                    left_out += lost
                    shape = (batch, length, threads)
                    figures += [sum_up(e, shape, times, differences[e]) for e in built]
    finally:
        torch.set_num_threads(before)
    return Report(
        model=name,
        density=_density(model),
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        kernel_level=load_kernel().level,
        versions=package_versions(),
        other_load=statistics.fmean(loads) if loads else float("nan"),
        rounds_left_out=left_out,
        figures=figures,
    )


def _model_builder(folder: str | Path | BertModel) -> tuple[Callable[[], BertModel], str]:
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
        with _quiet_loading():
            return BertModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=torch.float32
            ).eval()

    return build, str(path)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' progress bar, and its table of the heads that an encoder lacks.

    Each engine loads the model anew.
    """
    before, had_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
        if had_bar:
            hf_logging.enable_progress_bar()


def _density(model: BertModel) -> float:
    weights = [p for p in model.encoder.parameters() if p.dim() == 2]
    total = sum(p.numel() for p in weights)
    return sum(int(p.count_nonzero()) for p in weights) / total if total else 0.0


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
