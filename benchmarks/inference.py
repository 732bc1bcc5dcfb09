"""Sparse inference against other engines: the table and the plot of the README.

    python benchmarks/inference.py table --model base --batch 1 --seq 128 [--engines ...]
    python benchmarks/inference.py avx2       # torch held to AVX2, our level avx2
    python benchmarks/inference.py memory     # RSS of load_sparse against from_pretrained
    python benchmarks/inference.py idle       # processor time between calls, on two threads
    python benchmarks/inference.py sparsities --plot docs/inference.png

Models are BERTs with random weights, each encoder matrix cut to its largest tenth (--sparsity).
What an engine computes does not depend on the values, and a real mask was measured to take 1.04
times the time of a random one. The engines need the extra `bench`. Give it an idle machine: rounds
with other load are left out, and if there are no others the report says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from sparsebert.inference.bench import parse_numbers, run_bench
from sparsebert.inference.bench_report import Report, render

SHAPES = {"base": (12, 768, 3072, 12), "mini": (6, 384, 1536, 12)}
ALL_ENGINES = "sparse,sparse-int8,torch,onnxruntime,onnxruntime-int8,openvino,openvino-int8"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "SPARSEBERT_KERNEL": "avx2",
}


def build_model(name: str, sparsity: float) -> BertModel:
    layers, hidden, inner, heads = SHAPES[name]
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        for weight in model.encoder.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.04)
                magnitudes = weight.abs()
                cut = magnitudes.flatten().kthvalue(round(sparsity * weight.numel())).values
                weight[magnitudes <= cut] = 0.0
    return model


def measure(options: argparse.Namespace, sparsity: float) -> Report:
    return run_bench(
        build_model(options.model, sparsity),
        engines=options.engines.split(","),
        batches=parse_numbers(options.batch, "--batch"),
        lengths=parse_numbers(options.seq, "--seq"),
        threads=options.threads,
        rounds=options.rounds,
        limit_seconds=options.limit,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )


def print_table(options: argparse.Namespace) -> None:
    report = measure(options, options.sparsity)
    print(f"{options.model} {render(report)}")


def print_avx2(options: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "table", "--engines", "sparse,torch"]
    command += ["--model", options.model, "--batch", options.batch, "--seq", options.seq]
    command += ["--rounds", str(options.rounds), "--limit", str(options.limit)]
    subprocess.run(command, check=True, env={**os.environ, **AVX2})


def print_sparsities(options: argparse.Namespace) -> None:
    """One row a sparsity and, with --plot, latency against sparsity."""
    rows = []
    for sparsity in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        report = measure(options, sparsity)
        for figure in report.figures:
            rows.append((sparsity, figure))
            print(
                f"{sparsity:.2f} {figure.engine:<18} median {figure.median_ms:7.2f} ms, processor "
                f"{figure.processor_ms or float('nan'):7.2f} ms",
                flush=True,
            )
    if options.plot is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for engine in options.engines.split(","):
        points = [(s, f.processor_ms or f.median_ms) for s, f in rows if f.engine == engine]
        axes.plot(*zip(*points, strict=True), marker="o", label=engine)
    axes.set_xlabel("sparsity of the encoder's matrices")
    axes.set_ylabel("processor time a call (ms)")
    axes.set_title(f"BERT {options.model}, batch {options.batch}, {options.seq} tokens, 1 thread")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.plot, dpi=120)


_MEMORY_PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
from transformers import BertModel
import sparsebert.inference.sparse_folder
from sparsebert import load_sparse
from sparsebert.inference.library import load_kernel
load_kernel()  # compiling and testing it is no part of loading a model
def resident():
    with open("/proc/self/status") as status:
        return {line.split()[0]: int(line.split()[1]) * 1024 for line in status
                if line.startswith(("VmRSS", "VmHWM"))}
ids = torch.zeros(8, 128, dtype=torch.long)
before = resident()["VmRSS:"]
if sys.argv[1] == "sparse":
    model = load_sparse(sys.argv[2])
else:
    model = BertModel.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
with torch.inference_mode():
    model(ids)
after = resident()
print(json.dumps({"after": after["VmRSS:"] - before, "peak": after["VmHWM:"] - before}))
"""


def print_memory(options: argparse.Namespace) -> None:
    """Bytes that loading and a call of 8 x 128 add, in a process of their own."""
    from sparsebert import save_sparse, to_sparse

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = build_model(options.model, options.sparsity)
        model.save_pretrained(folder / "dense")
        save_sparse(to_sparse(model), folder / "sparse")
        found = {}
        for kind in ("dense", "sparse"):
            command = [sys.executable, "-c", _MEMORY_PROGRAM, kind, str(folder / kind)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            size = sum(file.stat().st_size for file in (folder / kind).glob("*.safetensors"))
            print(
                f"{kind:<7} file {size / 1e6:6.1f} MB, RSS added {found[kind]['after'] / 1e6:6.1f} "
                f"MB, at most {found[kind]['peak'] / 1e6:6.1f} MB"
            )
        for which in ("after", "peak"):
            print(
                f"sparse over dense, {which}: {found['sparse'][which] / found['dense'][which]:.2f}"
            )


def print_idle(options: argparse.Namespace) -> None:
    """What a process takes of the processor while nobody calls it."""
    from sparsebert import to_sparse

    model, seconds = to_sparse(build_model(options.model, options.sparsity)), 10.0
    torch.set_num_threads(2)
    ids = torch.zeros(8, 128, dtype=torch.long)
    with torch.inference_mode():
        for _ in range(3):
            model(ids)
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - start) / seconds
    print(f"{options.model}: between calls on two threads the process takes {share:.4f} of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = {
        "table": print_table,
        "avx2": print_avx2,
        "memory": print_memory,
        "idle": print_idle,
        "sparsities": print_sparsities,
    }
    parser.add_argument("part", choices=parts)
    parser.add_argument("--model", choices=SHAPES, default="base")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--engines", default=ALL_ENGINES)
    parser.add_argument("--batch", default="1")
    parser.add_argument("--seq", default="128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a shape")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
