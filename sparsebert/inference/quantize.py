"""int8 weights: a matrix's rows rounded to 255 steps, each with a scale of its own."""

from dataclasses import dataclass

import torch
from torch import nn

from sparsebert.inference.errors import BadInput

FP32, INT8 = "fp32", "int8"
VALUES = (FP32, INT8)


def check_values(values: str) -> None:
    """Refuse what is not in `VALUES`."""
    if values not in VALUES:
        raise BadInput(f"values is {values!r}: choose {' or '.join(VALUES)}")


@dataclass(frozen=True)
class Int8Matrix:
    """`scales[row] * values[row]` stands for a row of weights."""

    values: torch.Tensor  # int8 [rows, inputs], -127 to 127
    scales: torch.Tensor  # fp32 [rows]

    def dequantize(self) -> torch.Tensor:
        """The weights that it stands for, fp32."""
        return self.values.float() * self.scales[:, None]


def quantize_rows(weight: torch.Tensor) -> Int8Matrix:
    """Round a matrix: scale = largest magnitude of the row / 127, to the nearest, ties to even.

    Raises:
        BadInput: a weight is not finite.
    """
    largest = weight.abs().amax(dim=1) if weight.shape[1] else weight.new_zeros(weight.shape[0])
    if not bool(largest.isfinite().all()):
        raise BadInput("a weight is not finite, so it has no int8: keep values='fp32'")
    scales = largest / 127
    # A row of zeros, or of numbers too small for a scale, has the scale 0.
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
    values = (weight / divisors[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8Matrix(values, scales)


class Int8Embedding(nn.Module):
    """A lookup table of int8 rows, in the place of nn.Embedding; ids [...] -> fp32 [..., H]."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, table: Int8Matrix) -> None:
        super().__init__()
        self.register_buffer("values", table.values, persistent=False)
        self.register_buffer("scales", table.scales, persistent=False)
        self.training = False

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of `ids`."""
        return self.values[ids].to(self.scales.dtype) * self.scales[ids][..., None]

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.values.shape[0]}, {self.values.shape[1]}"
