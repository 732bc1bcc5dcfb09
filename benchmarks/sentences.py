"""Texts a second in sentence-transformers: sparse, torch, and its onnx backend with int8.

    python benchmarks/sentences.py --folder MINILM --texts STSB.jsonl.gz --threads 1,2

MINILM is a sentence-transformers folder on BERT; its encoder is pruned to --sparsity, except for
onnx. STSB.jsonl.gz has lines with `sentence1`. Engines take turns in processes of their own, in
--rounds rounds; a figure is the median over all rounds, with the range.

`onnx-int8` wants --onnx FOLDER, which sentence-transformers wrote in an environment with optimum:

    model = SentenceTransformer(MINILM, backend="onnx"); model.save_pretrained(FOLDER)
    export_dynamic_quantized_onnx_model(model, "avx512_vnni", FOLDER)

and --onnx-python, the interpreter of that environment, if it is another.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ENGINES = ("sparse-int8", "sparse", "torch", "onnx-int8")
QUANTIZED = "onnx/model_qint8_avx512_vnni.onnx"


def measure(engine: str, options: argparse.Namespace) -> list[float]:
    """Texts a second of some passes over the texts, in this process."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(options.threads)
    if engine == "onnx-int8":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = options.threads
        settings = {"file_name": QUANTIZED, "session_options": session}
        model = SentenceTransformer(
            str(options.onnx),
            backend="onnx",
            model_kwargs={**settings, "provider": "CPUExecutionProvider"},
        )
    else:
        model = SentenceTransformer(str(options.folder), device="cpu")
        from inference import prune  # in this folder

        prune(model[0].model, options.sparsity)
        if engine != "torch":
            from sparsebert import to_sparse

            to_sparse(model, values="int8" if engine == "sparse-int8" else "fp32")
    with gzip.open(options.texts, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["sentence1"] for line in file][: options.count]
    model.encode(texts)
    found = []
    for _ in range(5):
        start = time.perf_counter()
        model.encode(texts)
        found.append(len(texts) / (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--onnx-python", default=sys.executable)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--count", type=int, default=256, help="texts of a pass")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=ENGINES, help="measure it in this process")
    options = parser.parse_args()
    if options.engine:
        options.threads = int(options.threads)
        print(json.dumps(measure(options.engine, options)))
        return
    for threads in options.threads.split(","):
        engines = [engine for engine in ENGINES if engine != "onnx-int8" or options.onnx]
        found: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(options.rounds):
            for engine in engines:
                python = options.onnx_python if engine == "onnx-int8" else sys.executable
                command = [python, *sys.argv, "--engine", engine, "--threads", threads]
                environment = {**os.environ, "OMP_NUM_THREADS": threads}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise SystemExit(f"{engine}: {done.stderr.splitlines()[-1]}")
                found[engine] += json.loads(done.stdout.splitlines()[-1])
        for engine, speeds in found.items():
            spread = f"{min(speeds):.0f}-{max(speeds):.0f}"
            print(f"{threads} threads, {engine:<12} {statistics.median(speeds):5.0f} ({spread})")


if __name__ == "__main__":
    main()
