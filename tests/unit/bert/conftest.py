from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bert.config import ModelConfig
from bert.model import PretrainingModel, build_model

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##a", "##b"]


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tiny_config(vocab_file: Path) -> ModelConfig:
    return ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        vocab=vocab_file,
    )


@pytest.fixture
def build_tiny(tiny_config: ModelConfig) -> Callable[..., PretrainingModel]:
    """A tiny model; weights are blown up so that a wrong mask shows."""

    def build(*, seed: int = 1) -> PretrainingModel:
        model = build_model(
            tiny_config,
            vocab_size=len(VOCAB),
            pad_id=0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            seed=seed,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(10)
        return model

    return build
