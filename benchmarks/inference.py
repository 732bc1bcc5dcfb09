"""Sparse inference against other engines: the table and the plot of the README.

    python benchmarks/inference.py table --model base --batch 1 --seq 128 [--engines ...]
    python benchmarks/inference.py avx2       # torch held to AVX2, our level avx2
    python benchmarks/inference.py memory     # RSS of load_sparse against from_pretrained
    python benchmarks/inference.py idle       # processor time between calls, on two threads
    python benchmarks/inference.py sparsities --plot docs/inference.png
    python benchmarks/inference.py accuracy --folder MINILM --texts STSB.jsonl.gz --sparsity 0
    python benchmarks/inference.py task --folder CLASSIFIER --texts SST2_DEV.jsonl.gz
    python benchmarks/inference.py threads    # two against one, interleaved
    python benchmarks/inference.py mixed      # 10,000 calls of mixed lengths: RSS, time a token

Models are BERTs with random weights, each encoder matrix cut to its largest tenth (--sparsity).
What an engine computes does not depend on the values, and a real mask was measured to take 1.04
times the time of a random one. The engines need the extra `bench`. Give it an idle machine: rounds
with other load are left out, and if there are no others the report says so.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
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
    return prune(model, sparsity)


def prune(model: BertModel, sparsity: float) -> BertModel:
    """Cut each encoder matrix to its largest weights."""
    with torch.no_grad():
        for weight in model.encoder.parameters():
            if weight.dim() == 2 and sparsity > 0:
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

    figure, axes = pyplot.subplots(figsize=(7.5, 4))
    for engine in options.engines.split(","):
        points = [(s, f.processor_ms or f.median_ms) for s, f in rows if f.engine == engine]
        axes.plot(*zip(*points, strict=True), marker="o", label=engine)
    axes.set_xlabel("sparsity of the encoder's matrices")
    axes.set_ylabel("processor time a call (ms)")
    axes.set_title(f"BERT {options.model}, batch {options.batch}, {options.seq} tokens, 1 thread")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
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


def print_accuracy(options: argparse.Namespace) -> None:
    """What int8 changes on real text: the last hidden state, and STS-B's rank correlation.

    The model is a trained sentence-transformers folder on BERT, mean pooling; --texts has STS-B's
    lines (sentence1, sentence2, score). Engines compute 8 pairs a call.
    """
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer

    from sparsebert.inference.peers import BUILDERS, Workshop

    with gzip.open(options.texts, "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:

        def build() -> BertModel:
            model = BertModel.from_pretrained(options.folder, dtype=torch.float32).eval()
            return prune(model, options.sparsity)

        shop = Workshop(build, options.threads, Path(temporary))
        wanted = None
        for engine in ["torch", *options.engines.split(",")]:
            run, states, scores = BUILDERS[engine](shop), [], []
            for start in range(0, len(pairs), 8):
                batch = pairs[start : start + 8]
                texts = [p["sentence1"] for p in batch] + [p["sentence2"] for p in batch]
                features = tokenizer(texts, padding=True, return_tensors="np")
                mask = features["attention_mask"]
                hidden = run(features["input_ids"], mask)
                states.append(hidden[mask == 1])
                mean = (hidden * mask[..., None]).sum(1)
                mean /= np.linalg.norm(mean, axis=1, keepdims=True)
                scores.append((mean[: len(batch)] * mean[len(batch) :]).sum(1))
            found = np.concatenate(states)
            wanted = found if wanted is None else wanted
            error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
            correlation = spearmanr(np.concatenate(scores), [p["score"] for p in pairs]).statistic
            print(
                f"{engine:<18} relative rms error {error:.4f}, Spearman {100 * correlation:.2f}",
                flush=True,
            )


def print_task(options: argparse.Namespace) -> None:
    """Accuracy of a pruned classifier, exported dense, with fp32 and with int8 values.

    --texts has lines with `sentence` and `label`.
    """
    from transformers import AutoTokenizer, BertForSequenceClassification

    from sparsebert import to_sparse

    with gzip.open(options.texts, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    labels = np.array([int(row["label"]) for row in rows])
    answers = {}
    for values in ("fp32", "int8"):
        model = BertForSequenceClassification.from_pretrained(options.folder, dtype=torch.float32)
        to_sparse(model, values=values)
        found = []
        for start in range(0, len(rows), 32):
            texts = [row["sentence"] for row in rows[start : start + 32]]
            features = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                found += model(**features).logits.argmax(1).tolist()
        answers[values] = np.array(found)
        print(f"{values}: accuracy {100 * (answers[values] == labels).mean():.2f}")
    changed = int((answers["fp32"] != answers["int8"]).sum())
    print(f"{changed} of {len(rows)} answers differ")


def print_threads(options: argparse.Namespace) -> None:
    """The encoder on two threads against one, in turns."""
    from sparsebert import to_sparse

    values = "int8" if "sparse-int8" in options.engines.split(",") else "fp32"
    encoder = to_sparse(build_model(options.model, options.sparsity), values=values).encoder
    for batch in parse_numbers(options.batch, "--batch"):
        for length in parse_numbers(options.seq, "--seq"):
            x = torch.randn(batch, length, encoder.config.hidden_size)
            ratios, fastest = [], {1: float("inf"), 2: float("inf")}
            with torch.inference_mode():
                for _ in range(60):
                    seconds = {}
                    for threads in (1, 2):
                        torch.set_num_threads(threads)
                        time.sleep(0.002)  # another engine's or call's threads go to sleep
                        encoder(x)
                        start = time.perf_counter()
                        encoder(x)
                        seconds[threads] = time.perf_counter() - start
                        fastest[threads] = min(fastest[threads], seconds[threads])
                    ratios.append(seconds[1] / seconds[2])
            low, middle, high = np.percentile(ratios, [10, 50, 90])
            one, two = 1e3 * fastest[1], 1e3 * fastest[2]
            print(
                f"{options.model} {values} {batch} x {length}: {middle:.2f} "
                f"({low:.2f}-{high:.2f}), fastest {one:.2f} and {two:.2f} ms",
                flush=True,
            )


def print_mixed(options: argparse.Namespace) -> None:
    """RSS over calls of mixed lengths, and the time of a batch against its real tokens."""
    if options.folder is None:  # a process of its own, in which nothing was built
        from sparsebert import save_sparse, to_sparse

        values = "int8" if "sparse-int8" in options.engines.split(",") else "fp32"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / values
            model = build_model(options.model, options.sparsity)
            save_sparse(to_sparse(model, values=values), folder)
            command = [sys.executable, *sys.argv, "--folder", str(folder)]
            subprocess.run(command, check=True)
        return
    from sparsebert import load_sparse
    from sparsebert.inference.library import load_kernel

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    load_kernel()
    generator = np.random.default_rng(0)
    torch.set_num_threads(options.threads)
    # What torch and transformers take at their first call is not the model's.
    small = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    BertModel(small).eval()(torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 9).tril().long())
    before = resident()
    model = load_sparse(options.folder)
    size = (options.folder / "sparse.safetensors").stat().st_size / 1e6
    print(f"loading adds {resident() - before:.1f} MB, the file has {size:.1f} MB")
    with torch.inference_mode():
        for call in range(1, options.calls + 1):
            lengths = generator.integers(1, 129, size=int(generator.integers(1, 9)))
            mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
            ids = generator.integers(0, 30000, mask.shape)
            model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            if call in (options.calls // 100, options.calls // 10, options.calls):
                grown = resident() - before
                print(
                    f"{options.model} {options.folder.name}, {call} calls: RSS has grown by "
                    f"{grown:.1f} MB, the file has {size:.1f} MB: {grown / size:.2f}"
                )
        # 8 sequences padded to 128 tokens, of which a share is real; shapes take turns.
        lengths = (1, 16, 32, 64, 96, 128)
        fastest = dict.fromkeys(lengths, float("inf"))
        ids = torch.zeros(8, 128, dtype=torch.long)
        for _ in range(30):
            for length in lengths:
                real = torch.arange(128) < torch.tensor([128] + [length] * 7)[:, None]
                start = time.perf_counter()
                model(ids, attention_mask=real.long())
                fastest[length] = min(fastest[length], time.perf_counter() - start)
    for length, seconds in fastest.items():
        tokens = 128 + 7 * length
        print(f"{tokens:4} of 1024 tokens real: {1e3 * seconds:6.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = {
        "table": print_table,
        "avx2": print_avx2,
        "memory": print_memory,
        "idle": print_idle,
        "sparsities": print_sparsities,
        "accuracy": print_accuracy,
        "task": print_task,
        "threads": print_threads,
        "mixed": print_mixed,
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
    parser.add_argument("--folder", type=Path, help="of a trained model")
    parser.add_argument("--calls", type=int, default=10_000, help="of mixed lengths")
    parser.add_argument("--texts", type=Path, help="jsonl.gz of accuracy, task")
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
