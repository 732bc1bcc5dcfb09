"""First weights for little text: attention that looks at neighbours and passes on what it sees.

From noise, a transformer learns the words' frequencies first and needs thousands of steps until its
attention finds anything. Trained models share a simple structure, and starting from it shortens
that search: mimetic initialization (Trockman and Kolter, arXiv 2305.09828), here for BERT. To the
weights as drawn are added

    position embeddings           sinusoids, in the first H dimensions only
    query and key, heads 0 and 1  a map of these dimensions onto the head's own, turned between
                                  query and key so that the tokens before (after) match best
    value, attention output       the identity: a head hands on its share of a token's vector, and
    and the MLM head's dense      the tied decoder recognises it as that token

so heads 0 and 1 of each layer start on the two tokens before and after, the others on the whole
segment alike. All of it is trained and pruned like any weight.

Legend: D hidden, H dimensions of a head, T positions.
"""

import math

import torch
from transformers import BertForMaskedLM

# Sinusoids turn by 1 radian a token (the fastest pair of dimensions) down to 1/100.
_SLOWEST_TURN = 0.01
# Their root mean square beside that of a word's vector as drawn; and what is left of the noise.
_POSITION_SCALE = 3.0
_POSITION_NOISE = 0.25
# Where heads 0 and 1 look, in tokens: between the next and the one beyond.
_OFFSETS = (-1.5, 1.5)
# Attention score of the best match, before the softmax.
_PEAK_SCORE = 16.0


@torch.no_grad()
def add_structure(mlm: BertForMaskedLM) -> None:
    """Change freshly drawn weights in place, on the CPU; draws nothing itself.

    The model must have more than 2 heads, of an even number of dimensions (see `ModelConfig`).
    """
    config = mlm.config
    hidden = config.hidden_size
    head_dim = hidden // config.num_attention_heads
    turns = _SLOWEST_TURN ** (torch.arange(0, head_dim, 2) / head_dim)  # [H / 2] radians a token
    positions = mlm.bert.embeddings.position_embeddings.weight  # [T, D]
    angles = torch.arange(len(positions))[:, None] * turns  # [T, H / 2]
    amplitude = _POSITION_SCALE * config.initializer_range * math.sqrt(2)
    positions.mul_(_POSITION_NOISE)
    positions[:, 0:head_dim:2] += amplitude * angles.sin()
    positions[:, 1:head_dim:2] += amplitude * angles.cos()

    gain = _gain(head_dim, hidden)
    identity = torch.eye(hidden)
    for layer in mlm.bert.encoder.layer:
        attention = layer.attention.self
        for head, offset in enumerate(_OFFSETS):
            own = slice(head * head_dim, (head + 1) * head_dim)
            attention.query.weight[own, :head_dim] += gain * _rotation(offset * turns)
            attention.key.weight[own, :head_dim] += gain * torch.eye(head_dim)
        attention.value.weight += identity
        layer.attention.output.dense.weight += identity
    mlm.cls.predictions.transform.dense.weight += identity


def _gain(head_dim: int, hidden: int) -> float:
    """The map's factor at which two equal positions score _PEAK_SCORE after the first LayerNorm."""
    # Mean squares in units of a word's: over all dimensions, and over those of the positions.
    everywhere = 1 + _POSITION_SCALE**2 * head_dim / hidden
    of_positions = _POSITION_SCALE**2 / everywhere
    return math.sqrt(_PEAK_SCORE / (math.sqrt(head_dim) * of_positions))


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """[H, H]: turns each pair (sin a, cos a) to (sin(a + angle), cos(a + angle))."""
    rotation = torch.zeros(2 * len(angles), 2 * len(angles))
    even = torch.arange(0, 2 * len(angles), 2)
    rotation[even, even] = rotation[even + 1, even + 1] = angles.cos()
    rotation[even, even + 1] = angles.sin()
    rotation[even + 1, even] = -angles.sin()
    return rotation
