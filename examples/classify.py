"""A sparse classifier in transformers' pipeline.

    pip install sparsebert-inference
    python examples/classify.py [FOLDER]

FOLDER is what `sparsebert export --format sparse` or `save_sparse` wrote, with its tokenizer.
Without one a small model with random weights is made, saved and opened: it shows the calls.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

from sparsebert import load_sparse, save_sparse, to_sparse

TEXTS = ["the patients recovered", "the committee met on thursday, and then it met again"]
WORDS = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})


def make_folder(folder: Path) -> Path:
    """A sparse folder with a tokenizer of the texts' own words."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.bert.encoder.parameters():
            if weight.dim() == 2:
                weight[torch.rand_like(weight) < 0.9] = 0.0
    (folder / "tokenizer").mkdir()
    vocabulary.rename(folder / "tokenizer" / "vocab.txt")
    (folder / "tokenizer" / "config.json").write_text(config.to_json_string())
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    save_sparse(to_sparse(model, values="int8"), folder / "serving", tokenizer=tokenizer)
    return folder / "serving"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, nargs="?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or make_folder(Path(temporary))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        classify = pipeline("text-classification", model=load_sparse(folder), tokenizer=tokenizer)
        found = classify(TEXTS, batch_size=2)
        for text, alone in zip(TEXTS, found, strict=True):
            print(f"{alone['label']} {alone['score']:.4f}  {text}")
            # A batch pads the shorter text; it is computed as it is alone.
            assert abs(classify(text)[0]["score"] - alone["score"]) < 1e-6


if __name__ == "__main__":
    main()
