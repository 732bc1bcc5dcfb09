"""Stripes of whole units, and what ranks share of those that lie on several of them.

A parameter [outputs, inputs] is cut into *stripes*, the shortest runs of its flattened weights that
hold whole units: M neighbouring inputs, or (for blocks of several rows) a row of blocks. A rank
ranks the stripes it holds whole by itself. Those that are cut by a partition's boundary it shares:
each rank adds its part to a table of int64, the tables are summed over the ranks, and integers have
one sum in any order. The cost on the wire is the table, 8 bytes a number:

    N:M      M numbers a boundary
    RxC      2 * inputs / C numbers a boundary (two numbers where R is 1)

and 4 more a boundary and one a rank to say which stripes those are. A boundary is one for each pair
of neighbouring ranks and flat buffer (stages 1 and 2) or parameter (stage 3). Stage 0 has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsity.patterns.name import PatternName
from sparsity.selection.masks import FragmentMask
from sparsity.selection.population import CHUNK, NON_FINITE, Population
from sparsity.selection.threshold import MasksDoNotFit, NonFiniteWeights, Rounds


@dataclass(frozen=True)
class Stripes:
    """How one parameter is cut into stripes of `extent` weights, each of `units` units."""

    extent: int
    units: int
    rows: int
    columns: int

    @classmethod
    def of(cls, pattern: PatternName, shape: Sequence[int]) -> "Stripes":
        """The stripes of a parameter [outputs, inputs] that `pattern` divides."""
        rows = pattern.rows if pattern.kind == "blocks" else 1
        if rows == 1:
            return cls(pattern.columns, 1, 1, pattern.columns)
        return cls(rows * shape[1], shape[1] // pattern.columns, rows, pattern.columns)

    def touched(self, start: int, stop: int) -> tuple[int, int]:
        """Stripes [first, last) that hold weights of [start, stop)."""
        return start // self.extent, -(-stop // self.extent)

    def partial(self, start: int, stop: int) -> list[int]:
        """Stripes that hold weights of [start, stop), a non-empty range, and others."""
        ends = {at // self.extent for at in (start, stop) if at % self.extent}
        return sorted(ends)

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of stripes [first, last) and the weights [begin, end) of [start, stop) in them."""
        first, last = self.touched(start, stop)
        step = max(1, CHUNK // self.extent)
        for stripe in range(first, last, step):
            end = min(stripe + step, last)
            yield stripe, end, max(start, stripe * self.extent), min(stop, end * self.extent)


class StripedPattern:
    """What both patterns share: stripes, and the table for those that lie on several ranks."""

    UNFIT: str  # what `_count_unfit` counts

    def __init__(
        self,
        pattern: PatternName,
        shapes: Mapping[str, Sequence[int]],
        masters: Mapping[FragmentMask, torch.Tensor],
        *,
        rank: int,
        ranks: int,
    ) -> None:
        self.pattern = pattern
        self._masters, self._rank, self._ranks = masters, rank, ranks
        self._stripes = {name: Stripes.of(pattern, shape) for name, shape in shapes.items()}
        self._place: dict[tuple[str, int], slice] = {}
        self._table_size = 0

    def _width(self, name: str) -> int:
        """Numbers that a stripe of this parameter takes in the table."""
        raise NotImplementedError

    def _count_unfit(self) -> int:
        """Units in this rank's own part that no mask of this pattern prunes so."""
        raise NotImplementedError

    def _partial(self, mask: FragmentMask) -> list[int]:
        f = mask.fragment
        return self._stripes[f.name].partial(f.start, f.start + f.length)

    def _find_shared(self) -> Rounds[None]:
        """Agree on the table's layout: how many stripes each rank shares, then which.

        Raises:
            NonFiniteWeights: on all ranks, if any live weight is infinite or NaN.
            MasksDoNotFit: on all ranks, if an earlier mask shows that it is of another pattern.
        """
        names = list(self._stripes)
        mine = [(names.index(m.fragment.name), s) for m in self._masters for s in self._partial(m)]
        counts = torch.zeros(self._ranks + 2, dtype=torch.int64)
        counts[self._rank] = len(mine)
        counts[-2:] = torch.tensor([self._count_unfit(), self._count_non_finite()])
        *totals, unfit, non_finite = (yield counts).tolist()
        if non_finite:
            raise NonFiniteWeights("a prunable weight is infinite or NaN")
        if unfit:
            raise MasksDoNotFit(f"{unfit} {self.UNFIT}")
        listed = torch.zeros((sum(totals), 2), dtype=torch.int64)
        if not len(listed):
            return
        at = sum(totals[: self._rank])
        listed[at : at + len(mine)] = torch.tensor(mine, dtype=torch.int64).view(-1, 2)
        listed = yield listed
        for row, stripe in torch.unique(listed, dim=0).tolist():
            name = names[row]
            stop = self._table_size + self._width(name)
            self._place[name, stripe] = slice(self._table_size, stop)
            self._table_size = stop

    def _count_non_finite(self) -> int:
        return sum(
            int((bits >= NON_FINITE).sum())
            for mask, master in self._masters.items()
            for bits in Population(master, mask.keep, mask.uid, 0).live_bits()
        )

    def _share(
        self, parts: Mapping[FragmentMask, Mapping[int, torch.Tensor]]
    ) -> Rounds[torch.Tensor]:
        """The table, int64: the sum over ranks of their `parts` of shared stripes."""
        table = torch.zeros(self._table_size, dtype=torch.int64)
        for mask, by_stripe in parts.items():
            for stripe, numbers in by_stripe.items():
                table[self._place[mask.fragment.name, stripe]] += numbers.cpu()
        if self._table_size:
            table = yield table
        return table
