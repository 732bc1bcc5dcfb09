"""N:M and block patterns, ranked exactly even where a unit lies on several ranks (stripes.py)."""

import math
from collections.abc import Iterator, Mapping

import torch

from sparsity.patterns.single import owned_part, prune_pieces, prune_weights, selected_weights
from sparsity.patterns.stripes import StripedPattern
from sparsity.selection.masks import PRUNED, FragmentMask
from sparsity.selection.population import MAGNITUDE, Population
from sparsity.selection.threshold import Cut, MasksDoNotFit, Rounds

_EXPONENTS = 256  # values of fp32's exponent field


class NofM(StripedPattern):
    """Keep at most N of M neighbouring inputs.

    The M - N smallest of a group, its pruned weights first and equal ones by position, may be
    pruned; which of them go at this update is decided among all groups by the scope's threshold.
    So a gradual schedule works, and at its end, with sparsity 1 - N/M, every group is N:M.
    """

    UNFIT = "groups have lost more than their pattern prunes"

    def exchange(self) -> Rounds[None]:
        """Mark the weights that may be pruned; straddling groups with their other part."""
        yield from self._find_shared()
        m = self.pattern.columns
        parts = {
            mask: {s: self._ranks_of(mask, s, s + 1)[0] for s in self._partial(mask)}
            for mask in self._masters
        }
        table = yield from self._share(parts)
        # Of several ranks: in the sum no weight is missing, and 0 is a pruned one.
        if unfit := self._count_emptied(table.view(-1, m)):
            raise MasksDoNotFit(f"{unfit} {self.UNFIT}")
        self._may_go = {}
        for mask in self._masters:
            f = mask.fragment
            may_go = torch.zeros_like(mask.keep)
            for first, last, begin, end in self._stripes[f.name].chunks(
                f.start, f.start + f.length
            ):
                order = self._ranks_of(mask, first, last)
                for stripe in self._partial(mask):
                    if first <= stripe < last:
                        order[stripe - first] = table[self._place[f.name, stripe]].to(order.device)
                eligible = _rank_in_group(order) < m - self.pattern.rows
                inside = slice(begin - first * m, end - first * m)
                here = slice(begin - f.start, end - f.start)
                may_go[here] = -eligible.view(-1)[inside].to(torch.int8) & mask.keep[here]
            self._may_go[mask] = may_go

    def population(self, mask: FragmentMask) -> Population:
        """The owned weights that may be pruned."""
        return owned_part(self._whole(mask), mask)

    def prune(self, cuts: Mapping[FragmentMask, Cut]) -> dict[FragmentMask, tuple[int, int]]:
        """Of the weights that may be pruned, those up to the cut."""
        return prune_weights({mask: self._whole(mask) for mask in cuts}, cuts)

    def _width(self, name: str) -> int:
        return self.pattern.columns

    def _count_unfit(self) -> int:
        unfit = 0
        for mask in self._masters:
            f, m = mask.fragment, self.pattern.columns
            whole = slice(-f.start % m, f.length - (f.start + f.length) % m)
            unfit += self._count_emptied(mask.keep[whole].view(-1, m))
        return unfit

    def _count_emptied(self, groups: torch.Tensor) -> int:
        """Of `groups` [n, M], 0 where pruned: those with fewer than N weights left."""
        return int(((groups != 0).sum(1) < self.pattern.rows).sum())

    def _whole(self, mask: FragmentMask) -> Population:
        return Population(self._masters[mask], self._may_go[mask], mask.uid, mask.fragment.start)

    def _ranks_of(self, mask: FragmentMask, first: int, last: int) -> torch.Tensor:
        """Int64 [groups, M]: magnitude bits plus 1; 0 where pruned, or not in this fragment."""
        f, m = mask.fragment, self.pattern.columns
        begin, end = max(f.start, first * m), min(f.start + f.length, last * m)
        here = slice(begin - f.start, end - f.start)
        bits = (self._masters[mask][here].view(torch.int32) & MAGNITUDE).to(torch.int64) + 1
        order = torch.zeros((last - first) * m, dtype=torch.int64, device=bits.device)
        order[begin - first * m : end - first * m] = bits * (mask.keep[here] != 0)
        return order.view(-1, m)


class Blocks(StripedPattern):
    """Prune whole blocks of [rows, columns], the smallest mean magnitude first.

    A block's score is the exact sum of its magnitudes as integers, in units of a power of two that
    all ranks choose alike from the largest weight (so that no sum overflows 62 bits), divided by
    its size and rounded to fp32: no order of addition, so no partitioning, can change it. Weights
    below some 2^-58 of the largest (blocks of 16) add nothing to a sum.
    """

    UNFIT = "blocks are pruned in part"

    def exchange(self) -> Rounds[None]:
        """Score every block that touches this rank."""
        self._kept = {mask: self._count_kept(mask) for mask in self._masters}
        yield from self._find_shared()
        used = (yield self._count_exponents()).nonzero()
        top = int(used.max()) if len(used) else 0
        # Every |w| is below 2^(top - 126): shift it up as far as a block's sum allows.
        shift = 62 - math.ceil(math.log2(self.pattern.unit_numel)) - (top - 126)
        sums = {mask: self._sums(mask, shift) for mask in self._masters}
        parts = {
            mask: {
                s: torch.cat([self._stripe(mask, of[mask], s) for of in (sums, self._kept)])
                for s in self._partial(mask)
            }
            for mask in self._masters
        }
        table = yield from self._share(parts)
        unfit = 0
        for (name, _), place in self._place.items():
            left = table[place][self._stripes[name].units :]
            unfit += int(((left != 0) & (left != self.pattern.unit_numel)).sum())
        if unfit:
            raise MasksDoNotFit(f"{unfit} {self.UNFIT}")
        for mask, by_stripe in parts.items():
            units = self._stripes[mask.fragment.name].units
            for stripe in by_stripe:
                whole = table[self._place[mask.fragment.name, stripe]]
                self._stripe(mask, sums[mask], stripe).copy_(whole[:units])
        divisor = math.ldexp(self.pattern.unit_numel, shift)
        self._scores = {mask: (s.double() / divisor).float() for mask, s in sums.items()}

    def population(self, mask: FragmentMask) -> Population:
        """The blocks whose first weight this rank owns."""
        whole = self._whole(mask)
        firsts = self._first_weights(mask)
        f = mask.fragment
        counted = ((firsts >= f.owned_start) & (firsts < f.owned_stop)).to(torch.int8)
        assert whole.keep is not None
        return Population(whole.weights, whole.keep & -counted, whole.uid, whole.start)

    def prune(self, cuts: Mapping[FragmentMask, Cut]) -> dict[FragmentMask, tuple[int, int]]:
        """All weights of the blocks up to the cut."""
        return prune_pieces({mask: self._selected(mask, cut) for mask, cut in cuts.items()})

    def _selected(self, mask: FragmentMask, cut: Cut) -> Iterator[tuple[int, torch.Tensor]]:
        whole, f = self._whole(mask), mask.fragment
        stripes = self._stripes[f.name]
        chosen = torch.cat([piece for _, piece in selected_weights(whole, cut)])
        for first, last, begin, end in stripes.chunks(f.start, f.start + f.length):
            units = chosen[first * stripes.units - whole.start : last * stripes.units - whole.start]
            full = units.view(-1, 1, stripes.units, 1)
            full = full.expand(-1, stripes.rows, stripes.units, stripes.columns).reshape(-1)
            base = first * stripes.extent
            yield begin - f.start, full[begin - base : end - base]

    def _width(self, name: str) -> int:
        return 2 * self._stripes[name].units  # a sum, and how many are left

    def _count_unfit(self) -> int:
        unfit = 0
        for mask, left in self._kept.items():
            mixed = (left != 0) & (left != self.pattern.unit_numel)
            for stripe in self._partial(mask):  # known when they are shared
                self._stripe(mask, mixed, stripe).fill_(False)
            unfit += int(mixed.sum())
        return unfit

    def _count_kept(self, mask: FragmentMask) -> torch.Tensor:
        """Int64 [units touched]: how many of each block's weights here are kept."""
        f, stripes = mask.fragment, self._stripes[mask.fragment.name]
        counts = []
        for first, last, begin, end in stripes.chunks(f.start, f.start + f.length):
            base, numel = first * stripes.extent, (last - first) * stripes.extent
            kept = torch.zeros(numel, dtype=torch.bool, device=mask.keep.device)
            kept[begin - base : end - base] = mask.keep[begin - f.start : end - f.start] != PRUNED
            shaped = kept.view(last - first, stripes.rows, stripes.units, stripes.columns)
            counts.append(shaped.sum((1, 3)).view(-1))
        return torch.cat(counts)

    def _count_exponents(self) -> torch.Tensor:
        """Int64 [256]: live weights by exponent."""
        counts = torch.zeros(_EXPONENTS, dtype=torch.int64)
        for mask, master in self._masters.items():
            for bits in Population(master, mask.keep, mask.uid, 0).live_bits():
                counts += torch.bincount(bits >> 23, minlength=_EXPONENTS).cpu()
        return counts

    def _sums(self, mask: FragmentMask, shift: int) -> torch.Tensor:
        """Int64 [units touched]: this rank's part of each block's sum, in units of 2^-shift."""
        f, master = mask.fragment, self._masters[mask]
        stripes = self._stripes[f.name]
        sums = []
        for first, last, begin, end in stripes.chunks(f.start, f.start + f.length):
            here = slice(begin - f.start, end - f.start)
            values = torch.zeros(
                (last - first) * stripes.extent, dtype=torch.int64, device=master.device
            )
            # A power of two scales exactly in fp64; the one rounding is a weight's own.
            live = torch.where(mask.keep[here] != 0, master[here].abs(), 0.0).double()
            base = first * stripes.extent
            values[begin - base : end - base] = (live * math.ldexp(1.0, shift)).round().long()
            shaped = values.view(last - first, stripes.rows, stripes.units, stripes.columns)
            sums.append(shaped.sum((1, 3)).view(-1))
        return torch.cat(sums)

    def _stripe(self, mask: FragmentMask, values: torch.Tensor, stripe: int) -> torch.Tensor:
        """The view of the fragment's per-unit `values` that belongs to a stripe."""
        stripes = self._stripes[mask.fragment.name]
        at = (stripe - mask.fragment.start // stripes.extent) * stripes.units
        return values[at : at + stripes.units]

    def _first_weights(self, mask: FragmentMask) -> torch.Tensor:
        """Int64 [units touched]: flat index of each block's first weight."""
        stripes = self._stripes[mask.fragment.name]
        unit = torch.arange(self._scores[mask].numel(), device=mask.keep.device)
        unit += self._first_unit(mask)
        return unit // stripes.units * stripes.extent + unit % stripes.units * stripes.columns

    def _first_unit(self, mask: FragmentMask) -> int:
        stripes = self._stripes[mask.fragment.name]
        return mask.fragment.start // stripes.extent * stripes.units

    def _whole(self, mask: FragmentMask) -> Population:
        """Every block that touches the fragment, live while any of its weights here is."""
        live = -(self._kept[mask] != 0).to(torch.int8)
        return Population(self._scores[mask], live, mask.uid, self._first_unit(mask))


def _rank_in_group(order: torch.Tensor) -> torch.Tensor:
    """Int64 [groups, M]: how many of its group come before each; equal ones by position."""
    ranks = torch.zeros_like(order)
    for i in range(order.shape[1]):
        for j in range(order.shape[1]):
            if j != i:
                before = order[:, j] <= order[:, i] if j < i else order[:, j] < order[:, i]
                ranks[:, i] += before
    return ranks
