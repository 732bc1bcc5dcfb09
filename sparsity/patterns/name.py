"""What a pattern is called: unstructured, N:M of the inputs, or rectangular blocks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from distributed.errors import BadInput

_N_OF_M = re.compile(r"(\d+):(\d+)")
_BLOCKS = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class PatternName:
    """A pattern as it is written in the configuration: unstructured, "2:4" or "4x1"."""

    kind: str  # unstructured, n_of_m or blocks
    rows: int = 1  # of a block; N keeps of N:M
    columns: int = 1  # of a block; M of N:M

    @classmethod
    def parse(cls, text: str) -> "PatternName":
        """Read `text`.

        Raises:
            ValueError: with the forms there are.
        """
        if text == "unstructured":
            return cls("unstructured")
        if match := _N_OF_M.fullmatch(text):
            n, m = int(match[1]), int(match[2])
            if 0 < n < m <= 64:
                return cls("n_of_m", n, m)
        if match := _BLOCKS.fullmatch(text):
            rows, columns = int(match[1]), int(match[2])
            if rows > 0 and columns > 0 and rows * columns > 1:
                return cls("blocks", rows, columns)
        raise ValueError(
            f"sparsity.pattern is {text}: write unstructured, N:M such as 2:4 (keep at most 2 of 4 "
            "neighbouring inputs; M up to 64), or ROWSxCOLUMNS such as 4x1 (prune whole blocks)"
        )

    @property
    def unit_numel(self) -> int:
        """Weights that are pruned together."""
        return self.rows * self.columns if self.kind == "blocks" else 1

    @property
    def max_sparsity(self) -> Fraction:
        """No pattern of this name is sparser."""
        return (
            Fraction(self.columns - self.rows, self.columns)
            if self.kind == "n_of_m"
            else Fraction(1)
        )

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a parameter that cannot be divided.

        Raises:
            BadInput: naming it.
        """
        if self.kind == "unstructured":
            return
        rows = self.rows if self.kind == "blocks" else 1
        if len(shape) != 2 or shape[0] % rows or shape[1] % self.columns:
            raise BadInput(
                f"sparsity.pattern needs weights of [outputs, inputs] that divide by "
                f"[{rows}, {self.columns}], but {name} is {list(shape)}"
            )
