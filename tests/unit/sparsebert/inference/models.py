"""Small sparse BERTs with random weights, and what they should compute."""

import copy
from typing import Any

import torch
from transformers import BertConfig, BertModel

SMALL: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def build(cls: Any = BertModel, *, density: float = 0.1, seed: int = 0, **changes: Any) -> Any:
    """A model whose encoder has about that density, its other weights of a trained model's size."""
    torch.manual_seed(seed)
    model = cls(BertConfig(**{**SMALL, **changes})).eval()
    bert = model if isinstance(model, BertModel) else model.bert
    with torch.no_grad():
        for weight in bert.encoder.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.3)
                weight[torch.rand_like(weight) >= density] = 0.0
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def double(model: Any) -> Any:
    """The same model in float64, dense."""
    return copy.deepcopy(model).double()


def tokens(batch: int, length: int, seed: int = 1, vocabulary: int = 90) -> torch.Tensor:
    return torch.randint(
        0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def padding(batch: int, length: int) -> torch.Tensor:
    """A mask [B, S] of int64: sequence b has its last tokens padded, the first none."""
    lengths = [max(1, length - 3 * b) for b in range(batch)]
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


def assert_as_exact(found: torch.Tensor, exact: torch.Tensor, dense: torch.Tensor) -> None:
    """`found` is as near to the float64 result as 2e-5, or as four times torch's own error."""
    own = (dense.double() - exact).abs().max().item()
    error = (found.double() - exact).abs().max().item()
    assert error <= max(2e-5, 4 * own), f"error {error:.1e}, torch's own {own:.1e}"
