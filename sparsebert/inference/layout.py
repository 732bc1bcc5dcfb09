"""Where an encoder's weights are: in transformers' BertEncoder, and in the kernel's packed buffer.

Shapes: H hidden, I inner (feed-forward). A layer has four matrices for the kernel: query, key and
value are one [3H, H], then attention output [H, H], up [I, H] and down [H, I].
"""

from dataclasses import dataclass

# The kernel's matrix -> the weights that are stacked to it, by their names within a layer.
MATRICES: dict[str, tuple[str, ...]] = {
    "qkv": (
        "attention.self.query.weight",
        "attention.self.key.weight",
        "attention.self.value.weight",
    ),
    "out": ("attention.output.dense.weight",),
    "up": ("intermediate.dense.weight",),
    "down": ("output.dense.weight",),
}
# In the order of packed.h.
VECTORS: tuple[tuple[str, ...], ...] = (
    ("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"),
    ("attention.output.dense.bias",),
    ("attention.output.LayerNorm.weight",),
    ("attention.output.LayerNorm.bias",),
    ("intermediate.dense.bias",),
    ("output.dense.bias",),
    ("output.LayerNorm.weight",),
    ("output.LayerNorm.bias",),
)
# The order in which BertEncoder's own state_dict names a layer's tensors.
LAYER_NAMES = (
    "attention.self.query.weight",
    "attention.self.query.bias",
    "attention.self.key.weight",
    "attention.self.key.bias",
    "attention.self.value.weight",
    "attention.self.value.bias",
    "attention.output.dense.weight",
    "attention.output.dense.bias",
    "attention.output.LayerNorm.weight",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.weight",
    "intermediate.dense.bias",
    "output.dense.weight",
    "output.dense.bias",
    "output.LayerNorm.weight",
    "output.LayerNorm.bias",
)
MATRIX_NAMES = tuple(name for names in MATRICES.values() for name in names)


@dataclass(frozen=True)
class Dimensions:
    """What the kernel must know of an encoder besides its weights."""

    hidden: int
    inner: int
    heads: int
    layers: int
    layer_norm_eps: float

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor by its name within a layer."""
        rows = self.inner if name.startswith("intermediate.") else self.hidden
        if not name.endswith("weight") or "LayerNorm" in name:
            return (rows,)
        return rows, self.inner if name == "output.dense.weight" else self.hidden
