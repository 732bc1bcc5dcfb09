"""The exact k-th smallest magnitude over all ranks, without gathering a weight.

Magnitudes of floats order like their bit patterns, so the cut is found digit by digit (radix
selection) on the 31 bits of |w|: in each of three rounds every rank counts its weights by the next
11, 10 and 10 bits, the int64 counts are summed over the ranks, and all ranks follow the bin that
holds the k-th weight. That is 32 KiB a scope on the wire, whatever the number of weights or ranks.

Equal magnitudes at the cut are told apart by the hash of their logical position: a further radix
selection on 64 bits, in six small rounds, only when it is needed. So exactly k weights are pruned
and the same ones for every partitioning.

`select` is a generator: it yields this rank's counts and is sent the sum over all ranks. `run`
drives it with the real all-reduce; a test drives thousands of simulated ranks in lockstep.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch

from distributed.hashing import position_hash, unsigned_order

Selection = Generator[torch.Tensor, torch.Tensor, "list[Cut]"]

_MAGNITUDE = 0x7FFFFFFF
_FIRST_NON_FINITE_BIN = 0x7F8  # bits >= 0x7F800000 are infinity and NaN
_VALUE_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, bits), most significant first
_TIE_DIGITS = ((53, 11), (42, 11), (31, 11), (20, 11), (10, 10), (0, 10))
# Elements worked on at a time: temporaries stay in cache and add nothing to the memory of a rank.
CHUNK = 1 << 18


class NonFiniteWeights(RuntimeError):
    """A prunable weight is infinite or NaN, so magnitudes have no order. Raised on all ranks."""


@dataclass(frozen=True)
class Population:
    """One fragment's prunable weights: fp32 `weights` [n], `keep` int8 [n] (-1 live, 0 pruned).

    `uid` and `start` give each weight its logical position, for ties.
    """

    weights: torch.Tensor
    keep: torch.Tensor
    uid: int
    start: int

    def chunks(self) -> Generator[tuple[torch.Tensor, torch.Tensor, int], None, None]:
        """(bits of |w| int32 [c], live bool [c], logical index of the first) piece by piece."""
        bits = self.weights.view(torch.int32)
        for at in range(0, bits.numel(), CHUNK):
            piece = bits[at : at + CHUNK] & _MAGNITUDE
            yield piece, self.keep[at : at + CHUNK] != 0, self.start + at


@dataclass(frozen=True)
class Cut:
    """Which live weights a scope prunes next: |w| below `bits`, and at it those with hash <= `tie`.

    `tie` None prunes all weights at `bits`. bits < 0 prunes none. `ties` counts the weights at the
    cut when some of them stay.
    """

    bits: int
    tie: int | None = None
    ties: int = 0

    @property
    def threshold(self) -> float:
        """The magnitude at the cut; |w| <= threshold is pruned, up to ties."""
        if self.bits < 0:
            return 0.0
        return float(torch.tensor([self.bits], dtype=torch.int32).view(torch.float32).item())

    def selects(self, bits: torch.Tensor, uid: int, index: int) -> torch.Tensor:
        """Bool [c]: which of the magnitudes `bits` int32 [c], from logical `index` on, are cut."""
        if self.bits < 0:
            return torch.zeros_like(bits, dtype=torch.bool)
        if self.tie is None:
            return bits <= self.bits
        selected = bits < self.bits
        at = (bits == self.bits).nonzero().view(-1)
        if at.numel():
            hashes = unsigned_order(position_hash(uid, at + index))
            selected[at] = hashes <= self.tie
        return selected


def run(selection: Selection, all_reduce: Callable[[torch.Tensor], torch.Tensor]) -> list[Cut]:
    """Collective: drive `select` with the sum over all ranks."""
    try:
        counts = next(selection)
        while True:
            counts = selection.send(all_reduce(counts))
    except StopIteration as done:
        cuts: list[Cut] = done.value
        return cuts


def select(scopes: Sequence[Sequence[Population]], counts: Sequence[int]) -> Selection:
    """Find, for each scope, the cut that prunes exactly `counts[s]` of its live weights.

    Args:
        scopes: for each scope, this rank's populations; scopes are alike on all ranks, populations
            not.
        counts: live weights to prune in each scope; at least 0 and at most the scope's live
            weights.

    Returns:
        By StopIteration: one Cut a scope, the same on all ranks.

    Raises:
        NonFiniteWeights: on all ranks, if any live weight of any scope is not finite.
    """
    digits = [_Digits(scope, _value_chunks) for scope in scopes]
    wanted = list(counts)
    for shift, bits in _VALUE_DIGITS:
        total = yield torch.stack([d.histogram(shift, bits) for d in digits])
        if shift == _VALUE_DIGITS[0][0] and int(total[:, _FIRST_NON_FINITE_BIN:].sum()):
            raise NonFiniteWeights("a prunable weight is infinite or NaN")
        equal = _narrow(digits, total, wanted, bits)
    cuts = [Cut(d.prefix) if k else Cut(-1) for d, k in zip(digits, counts, strict=True)]

    tied = [s for s, k in enumerate(counts) if k and wanted[s] < equal[s]]
    if not tied:
        return cuts
    ties = [_Digits(scopes[s], _tie_chunks(cuts[s].bits)) for s in tied]
    left = [wanted[s] for s in tied]
    for shift, bits in _TIE_DIGITS:
        total = yield torch.stack([t.histogram(shift, bits) for t in ties])
        same = _narrow(ties, total, left, bits)
    for s, tie, rest, count in zip(tied, ties, left, same, strict=True):
        if rest != count:
            raise RuntimeError("two weights of equal magnitude share a 64-bit position hash")
        hash_bits = tie.prefix - (1 << 64) if tie.prefix >= 1 << 63 else tie.prefix
        order = int(unsigned_order(torch.tensor(hash_bits)))
        cuts[s] = Cut(cuts[s].bits, tie=order, ties=equal[s])
    return cuts


class _Digits:
    """One scope's radix state on this rank: the prefix found so far and the keys that share it."""

    def __init__(
        self,
        scope: Sequence[Population],
        chunks: Callable[[Population], Generator[torch.Tensor, None, None]],
    ) -> None:
        self.prefix = 0
        self._scope, self._chunks = scope, chunks
        self._keys: list[torch.Tensor] | None = None  # None: every key of the scope

    def histogram(self, shift: int, bits: int) -> torch.Tensor:
        """Counts int64 [2^bits] of this rank's keys, with the prefix found so far, by the next
        digit.
        """
        counts = torch.zeros(1 << bits, dtype=torch.int64)
        if self._keys is None:
            for population in self._scope:
                for keys in self._chunks(population):
                    counts += _bincount(keys, shift, bits)
        else:
            for keys in self._keys:
                counts += _bincount(keys, shift, bits)
        self._shift, self._bits = shift, bits
        return counts

    def follow(self, digit: int) -> None:
        """Keep the keys whose last counted digit is `digit`."""
        self.prefix = (self.prefix << self._bits) | digit
        kept = []
        sources = (
            (keys for p in self._scope for keys in self._chunks(p))
            if self._keys is None
            else iter(self._keys)
        )
        for keys in sources:
            match = keys[_digit(keys, self._shift, self._bits) == digit]
            if match.numel():
                kept.append(match)
        self._keys = [torch.cat(kept)] if kept else []


def _narrow(
    digits: Sequence[_Digits], total: torch.Tensor, wanted: list[int], bits: int
) -> list[int]:
    """Follow in each scope the bin that holds the wanted-th key; `wanted` becomes the rest in it.

    Returns the number of keys in that bin, over all ranks.
    """
    sizes = []
    for s, scope in enumerate(digits):
        cumulative = total[s].cumsum(0)
        if wanted[s]:
            digit = int(torch.searchsorted(cumulative, wanted[s]))
            wanted[s] -= int(cumulative[digit] - total[s, digit])
        else:
            digit = 0
        sizes.append(int(total[s, digit]))
        scope.follow(digit)
    return sizes


def _value_chunks(population: Population) -> Generator[torch.Tensor, None, None]:
    for bits, live, _ in population.chunks():
        yield bits[live]


def _tie_chunks(
    at_bits: int,
) -> Callable[[Population], Generator[torch.Tensor, None, None]]:
    def chunks(population: Population) -> Generator[torch.Tensor, None, None]:
        for bits, live, index in population.chunks():
            at = ((bits == at_bits) & live).nonzero().view(-1)
            if at.numel():
                yield position_hash(population.uid, at + index)

    return chunks


def _digit(keys: torch.Tensor, shift: int, bits: int) -> torch.Tensor:
    return (keys >> shift) & ((1 << bits) - 1)


def _bincount(keys: torch.Tensor, shift: int, bits: int) -> torch.Tensor:
    return torch.bincount(_digit(keys, shift, bits), minlength=1 << bits).cpu()
