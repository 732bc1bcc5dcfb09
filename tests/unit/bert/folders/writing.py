"""Hugging Face folders as people have them: tests write one with transformers and change it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a", "##b"]
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
Tensors = dict[str, torch.Tensor]


def write_folder(
    folder: Path, *, words: Sequence[str] = WORDS, rows: int | None = None, **sizes: Any
) -> Path:
    """A BERT of two layers with pooler and both heads, as its authors would publish it."""
    torch.manual_seed(3)
    config = BertConfig(vocab_size=rows or len(words), **{**SIZES, **sizes})
    BertForPreTraining(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


def change_weights(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Rewrite model.safetensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: v for name, v in config.items() if v is not None}))


def write_shards(folder: Path, count: int = 2) -> dict[str, str]:
    """Divide model.safetensors into several files with an index; its weight_map."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    places = {name: f"model-{i % count}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places
