import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import layer_norm

from bert.architecture import named_weights
from bert.config import ModelConfig
from bert.model import PretrainingModel, build_model

VOCAB_SIZE, TOKENS, LAYERS = 2000, 128, 2
# hidden size, heads, standard deviation: the demo's and BERT-base's
SHAPES = [(64, 4, 0.08), (768, 12, 0.02)]


def build(
    hidden: int, heads: int, std: float, initialization: str, seed: int = 1
) -> PretrainingModel:
    config = ModelConfig(
        hidden_size=hidden,
        num_layers=LAYERS,
        num_heads=heads,
        intermediate_size=32,
        max_position_embeddings=TOKENS,
        initializer_range=std,
        initialization=initialization,
        vocab=Path("vocab.txt"),
    )
    return build_model(
        config,
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        seed=seed,
    )


def attention_by_distance(model: PretrainingModel, heads: int) -> dict[int, torch.Tensor]:
    """Mean attention of the first layer's heads on tokens at distance -5 .. 5; [heads] each."""
    weights = dict(named_weights(model))
    words = torch.randint(0, VOCAB_SIZE, (TOKENS,), generator=torch.Generator().manual_seed(0))
    vectors = weights["embeddings.word_embeddings.weight"][words]
    vectors = vectors + weights["embeddings.position_embeddings.weight"]
    vectors = layer_norm(vectors, (vectors.shape[1],))

    def project(name: str) -> torch.Tensor:
        matrix = weights[f"encoder.layer.0.attention.self.{name}.weight"]
        return (vectors @ matrix.t()).view(TOKENS, heads, -1).transpose(0, 1)

    query, key = project("query"), project("key")
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    attention = scores.softmax(dim=-1)  # [heads, T, T]
    inner = range(5, TOKENS - 5)
    return {
        distance: torch.stack([attention[:, i, i + distance] for i in inner]).mean(dim=0)
        for distance in range(-5, 6)
    }


@pytest.mark.parametrize(("hidden", "heads", "std"), SHAPES)
def test_two_heads_look_at_the_tokens_before_and_after(hidden: int, heads: int, std: float) -> None:
    with torch.no_grad():
        seen = attention_by_distance(build(hidden, heads, std, "structured"), heads)
        plain = attention_by_distance(build(hidden, heads, std, "normal"), heads)
    before = seen[-2] + seen[-1]
    after = seen[1] + seen[2]
    # Seen: 0.59 to 0.73 on these two tokens, most of the rest on the token itself.
    assert before[0] > 0.5 and after[0] < 0.05
    assert after[1] > 0.5 and before[1] < 0.05
    # The other heads, and every head as drawn, see the whole segment: 1 / 128 a token.
    for share in (*(s[2:] for s in seen.values()), *plain.values()):
        assert ((share > 0.5 / TOKENS) & (share < 2 / TOKENS)).all()


@pytest.mark.parametrize(("hidden", "heads", "std"), SHAPES)
def test_only_the_named_weights_differ_from_those_drawn(
    hidden: int, heads: int, std: float
) -> None:
    drawn = dict(named_weights(build(hidden, heads, std, "normal")))
    structured = dict(named_weights(build(hidden, heads, std, "structured")))
    changes = {n: structured[n].detach() - w.detach() for n, w in drawn.items()}
    changed = {name for name, change in changes.items() if change.any()}
    of_layers = {
        f"encoder.layer.{layer}.attention.{part}.weight"
        for layer in range(LAYERS)
        for part in ("self.query", "self.key", "self.value", "output.dense")
    }
    of_head = "cls.predictions.transform.dense.weight"
    assert changed == of_layers | {"embeddings.position_embeddings.weight", of_head}
    identity = torch.eye(hidden)
    for name in (n for n in changed if n == of_head or "value" in n or "output.dense" in n):
        torch.testing.assert_close(changes[name], identity, rtol=0, atol=1e-6)
    head_dim = hidden // heads
    for name in (n for n in changed if "query" in n or "key" in n):
        # Heads 0 and 1, and there only what the positions occupy, by an orthogonal map.
        inside = changes[name][: 2 * head_dim, :head_dim]
        assert changes[name].count_nonzero() == inside.count_nonzero()
        for block in inside.split(head_dim):
            square = block @ block.t()
            torch.testing.assert_close(square, square[0, 0] * torch.eye(head_dim))


def test_structured_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (
        build(64, 4, 0.08, "structured", seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("hidden", "heads"), [(16, 2), (12, 4)])
def test_a_model_without_room_for_it_is_refused(hidden: int, heads: int) -> None:
    with pytest.raises(ValidationError, match=r"model\.num_heads is \d and a head has \d dim"):
        ModelConfig(
            hidden_size=hidden, num_heads=heads, initialization="structured", vocab=Path("v")
        )
