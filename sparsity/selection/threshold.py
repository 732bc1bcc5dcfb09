"""The exact k-th smallest magnitude over all ranks, without gathering a weight.

Magnitudes of floats order like their bit patterns, so the cut is found digit by digit (radix
selection) on the 31 bits of |w|: in each of three rounds every rank counts its weights by the next
11, 10 and 10 bits, the int64 counts are summed over the ranks, and all ranks follow the bin that
holds the k-th weight. That is 32 KiB a scope on the wire, whatever the number of weights or ranks.

Large scopes are first narrowed: a sample's histograms (19 bits, 20 KiB) give a bracket that holds
the cut almost surely, one pass over the weights counts those below it and collects the few in it,
and the radix runs on these alone. If the counts show that the bracket missed, the radix runs on
everything: the answer is the same.

Equal magnitudes at the cut are told apart by the hash of their logical position: a further radix
selection on 64 bits, in at most six small rounds, as far as it is needed. So exactly k weights are
pruned and the same ones for every partitioning.

`select` is a generator: it yields this rank's counts and is sent the sum over all ranks. `run`
drives it with the real all-reduce; a test drives thousands of simulated ranks in lockstep.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from distributed.errors import BadInput
from distributed.hashing import position_hash, unsigned_order
from sparsity.selection.population import (
    MAGNITUDE_BITS,
    NON_FINITE,
    Inside,
    Keys,
    LiveWeights,
    compare,
    indices_of,
)

T = TypeVar("T")
# Code that yields int64 counts of this rank and is sent their sum over all ranks.
Rounds = Generator[torch.Tensor, torch.Tensor, T]
Selection = Rounds["list[Cut]"]

_TIE_BITS = 64
_DIGIT_BITS = 11
_SAMPLE_BITS = (11, 8)  # the digits of a bracket's ends
# Weights of all ranks together. A bracket then holds about 1 % of a scope; to fetch more of them
# from all over memory costs more than a narrower one saves.
SAMPLE_SIZE = 1 << 18
SAMPLE_MARGIN = 5.0  # standard deviations of the sample's quantile, on each side
_WIDEST = 1 / 16  # share of the sample; where more weights are nearly equal, nothing is gained
BRACKET_FROM = 1 << 21  # live weights; a smaller scope is counted as fast without a sample


class NonFiniteWeights(RuntimeError):
    """A prunable weight is infinite or NaN, so magnitudes have no order. Raised on all ranks."""


class MasksDoNotFit(BadInput):
    """Masks from before are not of the pattern that is to continue them. On all ranks."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: the masks from before do not fit sparsity.pattern")


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
        selected = compare(bits, "<=", self.bits)
        if self.tie is not None:
            at = indices_of(compare(bits, "==", self.bits))
            if at.numel():
                hashes = unsigned_order(position_hash(uid, at + index))
                selected[at] = hashes <= self.tie
        return selected


def run(rounds: Rounds[T], all_reduce: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """Collective: drive `rounds` with the sum over all ranks."""
    try:
        counts = next(rounds)
        while True:
            counts = rounds.send(all_reduce(counts))
    except StopIteration as done:
        result: T = done.value
        return result


def select(scopes: Sequence[LiveWeights], counts: Sequence[int], live: Sequence[int]) -> Selection:
    """Find, for each scope, the cut that prunes exactly `counts[s]` of its live weights.

    Args:
        scopes: this rank's weights of each scope; scopes are alike on all ranks, weights not.
        counts: live weights to prune in each scope; at least 0 and at most `live[s]`.
        live: live weights of each scope over all ranks.

    Returns:
        By StopIteration: one Cut a scope, the same on all ranks.

    Raises:
        NonFiniteWeights: on all ranks, if any live weight of any scope is not finite.
    """
    brackets = yield from _narrow(scopes, counts, live)
    places = {
        s: brackets.get(s) or _Whole(scopes[s], count) for s, count in enumerate(counts) if count
    }
    searches = {s: _Search(place.keys, place.wanted) for s, place in places.items()}
    whole = [search for s, search in searches.items() if s not in brackets]
    yield from _radix(whole, MAGNITUDE_BITS, check_finite=True)
    widest = max((bracket.width for bracket in brackets.values()), default=1)
    yield from _radix([searches[s] for s in brackets], max(1, (widest - 1).bit_length()))
    found = {s: place.low + searches[s].prefix for s, place in places.items()}

    tied = [s for s, search in searches.items() if search.wanted < search.size]
    ties = {s: _Search(places[s].hash_equal(found[s]), searches[s].wanted) for s in tied}
    yield from _tell_apart(list(ties.values()))
    cuts = [Cut(found.get(s, -1)) for s in range(len(scopes))]
    for s, tie in ties.items():
        # The last hash of those that share the digits found: all of them go.
        last = ((tie.prefix + 1) << tie.shift) - 1
        last_bits = last - (1 << 64) if last >= 1 << 63 else last
        order = int(unsigned_order(torch.tensor(last_bits)))
        cuts[s] = Cut(found[s], tie=order, ties=searches[s].size)
    return cuts


class _Search:
    """One scope's radix search for the `wanted`-th smallest key, on this rank's `keys`.

    `prefix` is the digits found so far, down to bit `shift`; `wanted` becomes the rest among the
    `size` keys, over all ranks, that share them.
    """

    def __init__(self, keys: Keys, wanted: int) -> None:
        self.wanted = wanted
        self.prefix, self.shift, self.size = 0, 0, 0
        self._keys, self._bits = keys, 0

    def histogram(self, shift: int, bits: int) -> torch.Tensor:
        """Counts int64 [2^bits] of the keys that share the prefix, by their next digit."""
        self.shift, self._bits = shift, bits
        return self._keys.histogram(shift, bits)

    def follow(self, total: torch.Tensor) -> None:
        """Keep the keys in the bin of `total` int64 [2^bits] that holds the wanted one."""
        digit, before = _find(total, self.wanted)
        self.wanted -= before
        self.size = int(total[digit])
        self.prefix = (self.prefix << self._bits) | digit
        self._keys = self._keys.having(digit, self.shift, self._bits)


def _digits(key_bits: int) -> Iterator[tuple[int, int]]:
    """(shift, bits) of each digit of a key, the most significant first."""
    rounds = -(-key_bits // _DIGIT_BITS)
    shift = key_bits
    for i in range(rounds):
        bits = -(-shift // (rounds - i))
        shift -= bits
        yield shift, bits


def _radix(
    searches: Sequence[_Search], key_bits: int, *, check_finite: bool = False
) -> Rounds[None]:
    """Run the searches side by side, most significant digit first."""
    if not searches:
        return
    for i, (shift, bits) in enumerate(_digits(key_bits)):
        total = yield torch.stack([search.histogram(shift, bits) for search in searches])
        if check_finite and i == 0 and int(total[:, NON_FINITE >> shift :].sum()):
            raise NonFiniteWeights("a prunable weight is infinite or NaN")
        for search, row in zip(searches, total, strict=True):
            search.follow(row)


def _tell_apart(searches: Sequence[_Search]) -> Rounds[None]:
    """Read hashes only as far as all that share the digits are wanted: mostly one digit."""
    for shift, bits in _digits(_TIE_BITS):
        open_ = [search for search in searches if search.wanted != search.size]
        if not open_:
            return
        total = yield torch.stack([search.histogram(shift, bits) for search in open_])
        for search, row in zip(open_, total, strict=True):
            search.follow(row)
    if any(search.wanted != search.size for search in searches):
        raise RuntimeError("two weights of equal magnitude share a 64-bit position hash")


@dataclass(frozen=True)
class _Whole:
    """All live weights of a scope: a small one, or one whose bracket missed."""

    scope: LiveWeights
    wanted: int
    low: int = 0

    @property
    def keys(self) -> Keys:
        return self.scope.keys

    def hash_equal(self, magnitude_bits: int) -> Keys:
        """Hashes of the positions of the live weights with exactly these bits."""
        return self.scope.find_inside(magnitude_bits, magnitude_bits + 1).hash_equal(0)


@dataclass(frozen=True)
class _Bracket:
    """The `wanted`-th smallest magnitude of a scope lies in [low, low + width) of bits."""

    low: int
    width: int
    wanted: int  # counted from the bracket's low end
    inside: Inside

    @property
    def keys(self) -> Keys:
        return self.inside.keys

    def hash_equal(self, magnitude_bits: int) -> Keys:
        """The same, of what was collected."""
        return self.inside.hash_equal(magnitude_bits - self.low)


def _narrow(
    scopes: Sequence[LiveWeights], counts: Sequence[int], live: Sequence[int]
) -> Rounds[dict[int, _Bracket]]:
    """A bracket that holds its cut, for each large scope where one was found.

    Scopes of which nothing is to be pruned are looked at too: all must be finite.
    """
    large = [s for s, n in enumerate(live) if n >= BRACKET_FROM and counts[s]]
    # Odd: a stride that divides the rows' length would see a few columns only.
    ends = yield from _bracket(
        [scopes[s].sample(live[s] // SAMPLE_SIZE | 1) for s in large],  # freed after it
        [counts[s] / live[s] for s in large],
    )
    ranges = [(s, *end) for s, end in zip(large, ends, strict=True) if end[0] < end[1]]
    ranges += [(s, 0, 0) for s, count in enumerate(counts) if not count]
    found = [(s, low, high, scopes[s].find_inside(low, high)) for s, low, high in ranges]
    if not found:
        return {}
    total = yield torch.tensor([[i.below, i.count, i.non_finite] for *_, i in found])
    if int(total[:, 2].sum()):
        raise NonFiniteWeights("a prunable weight is infinite or NaN")
    return {
        s: _Bracket(low, high - low, counts[s] - below, inside)
        for (s, low, high, inside), (below, count, _) in zip(found, total.tolist(), strict=True)
        if below < counts[s] <= below + count
    }


def _bracket(samples: Sequence[Keys], quantiles: Sequence[float]) -> Rounds[list[tuple[int, int]]]:
    """Magnitude bits [low, high) that almost surely hold each quantile; empty if not worth while.

    A sample's count below a quantile q is binomial: its standard deviation is sqrt(m q (1 - q)).
    """
    if not samples:
        return []
    first, second = _SAMPLE_BITS
    shift = MAGNITUDE_BITS - first
    total = yield torch.stack([keys.histogram(shift, first) for keys in samples])
    targets, found = [], []
    for s, q in enumerate(quantiles):
        m = int(total[s].sum())
        margin = SAMPLE_MARGIN * math.sqrt(m * q * (1 - q)) + SAMPLE_MARGIN
        targets.append((math.floor(m * q - margin), math.ceil(m * q + margin), m))
        found.append([_find(total[s], min(max(t, 1), max(m, 1))) for t in targets[s][:2]])
    ends = [(s, digit) for s, pair in enumerate(found) for digit, _ in pair]
    total = yield torch.stack(
        [
            samples[s].having(digit, shift, first).histogram(shift - second, second)
            for s, digit in ends
        ]
    )
    brackets = []
    for s, (lowest, highest, m) in enumerate(targets):
        bits, ranks = [], []
        for end, target in enumerate((lowest, highest)):
            digit, before = found[s][end]
            row = total[2 * s + end]
            inner, below = _find(row, min(max(target - before, 1), max(int(row.sum()), 1)))
            bits.append(((digit << second) | inner) << (shift - second))
            ranks.append(before + below + end * int(row[inner]))
        low = bits[0] if lowest >= 1 else 0
        high = min(bits[1] + (1 << (shift - second)), NON_FINITE) if highest <= m else NON_FINITE
        brackets.append((low, high) if 0 < ranks[1] - ranks[0] <= m * _WIDEST else (0, 0))
    return brackets


def _find(total: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin of `total` int64 [bins] that holds the wanted-th key, and the keys before it."""
    if wanted == 0:
        return 0, 0
    counts = total.numpy()  # half the time of torch's, which counts on a GPU
    cumulative = counts.cumsum()
    bin_ = min(int(cumulative.searchsorted(wanted)), counts.size - 1)
    return bin_, int(cumulative[bin_] - counts[bin_])
