"""What a threshold ranges over: live magnitudes on this rank, as bit patterns, read in one pass.

Magnitudes of finite floats order like the 31 low bits of their fp32 pattern, so everything here
compares integers. On CPU the passes are numpy's (vectorised compares, which leave the interpreter's
lock) over pieces that stay in cache, one thread per torch thread; elsewhere they are torch's.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from distributed.hashing import position_hash

MAGNITUDE = 0x7FFFFFFF
NON_FINITE = 0x7F800000  # the bits of infinity; NaNs lie above
# Weights worked on at a time: temporaries stay in cache and add next to nothing to a rank's memory.
CHUNK = 1 << 17
_DEVICE_CHUNK = 1 << 24  # on a GPU a launch costs more than memory traffic

S = TypeVar("S")
T = TypeVar("T")


def chunk_size(device: torch.device) -> int:
    """Weights worked on at a time on `device`."""
    return CHUNK if device.type == "cpu" else _DEVICE_CHUNK


def compare(bits: torch.Tensor, how: Literal["<=", "=="], number: int) -> torch.Tensor:
    """Bool [n]: how each of `bits` int32 [n] compares."""
    operation = operator.le if how == "<=" else operator.eq
    if bits.device.type == "cpu":  # ten times as fast as torch's
        return torch.from_numpy(operation(bits.numpy(), np.int32(number)))
    return cast(torch.Tensor, operation(bits, number))


def indices_of(chosen: torch.Tensor) -> torch.Tensor:
    """Where a bool tensor [n] is true, int64."""
    if chosen.device.type == "cpu":  # several times as fast as torch's
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return chosen.nonzero().view(-1)


def in_threads(work: Callable[[S], T], items: Sequence[S], device: torch.device) -> list[T]:
    """`work` on each item, in order; on the host one thread per torch thread."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


@dataclass(frozen=True)
class Inside:
    """One pass's answer for a bracket [low, high) of magnitude bits.

    `below` counts live weights under it and `non_finite` those that are infinite or NaN; `keys`
    int32 [c] are the bits, less `low`, of the live weights in it, and `indices` int64 [c] theirs.
    """

    below: int
    keys: torch.Tensor
    indices: torch.Tensor
    non_finite: int


@dataclass(frozen=True)
class Population:
    """One run of a parameter's weights: fp32 `weights` [n], `keep` int8 [n] (-1 live, 0 not).

    `keep` None means that all are live. `uid` and `start` give each weight its logical position,
    for ties. What is ranked need not be a weight: blocks are ranked by their scores.
    """

    weights: torch.Tensor
    keep: torch.Tensor | None
    uid: int
    start: int

    def count_live(self) -> int:
        """Number of live weights."""
        if self.keep is None:
            return self.weights.numel()
        return int(np.count_nonzero(self.keep.numpy()) if self._on_host else self.keep.sum().neg())

    def chunks(self) -> Iterator[tuple[torch.Tensor, int]]:
        """(bits of |w| int32 [c], offset of the first) piece by piece, live or not."""
        bits, size = self.weights.view(torch.int32), chunk_size(self.weights.device)
        for at in range(0, bits.numel(), size):
            yield bits[at : at + size] & MAGNITUDE, at

    def live(self, at: int, stop: int) -> torch.Tensor | None:
        """Bool [stop - at]: which weights of that range are live; None if all are."""
        return None if self.keep is None else self.keep[at:stop] != 0

    def live_bits(self) -> Iterator[torch.Tensor]:
        """Bits of the live magnitudes, int32, piece by piece."""
        for bits, at in self.chunks():
            live = self.live(at, at + bits.numel())
            yield bits if live is None else bits[live]

    def sample(self, stride: int) -> torch.Tensor:
        """Bits of the live magnitudes among every `stride`-th weight, int32 [m]."""
        bits = self.weights[::stride].contiguous().view(torch.int32) & MAGNITUDE
        return bits if self.keep is None else bits[self.keep[::stride] != 0]

    def find_equal(self, magnitude_bits: int) -> torch.Tensor:
        """Indices, int64, of the live weights whose magnitude has exactly these bits."""
        scan = _host_equal if self._on_host else _device_equal
        return torch.cat(self._scan(lambda at, stop: scan(self, at, stop, magnitude_bits)))

    def hash_positions(self, indices: torch.Tensor) -> torch.Tensor:
        """Hashes, int64, of the logical positions of the weights at `indices` int64 [m]."""
        return position_hash(self.uid, indices + self.start)

    def inside(self, low: int, high: int) -> Inside:
        """Count below the bracket and collect what is in it, in one pass."""
        scan = _host_inside if self._on_host else _device_inside
        pieces = self._scan(lambda at, stop: scan(self, at, stop, low, high))
        return Inside(
            sum(p.below for p in pieces),
            torch.cat([p.keys for p in pieces]),
            torch.cat([p.indices for p in pieces]),
            sum(p.non_finite for p in pieces),
        )

    @property
    def _on_host(self) -> bool:
        return self.weights.device.type == "cpu"

    def _scan(self, work: Callable[[int, int], T]) -> list[T]:
        """`work(at, stop)` for each piece, in order; at least one, perhaps empty."""
        total, size = self.weights.numel(), chunk_size(self.weights.device)
        ranges = [(at, min(at + size, total)) for at in range(0, max(total, 1), size)]
        return in_threads(lambda r: work(*r), ranges, self.weights.device)


def _host_inside(population: Population, at: int, stop: int, low: int, high: int) -> Inside:
    keys = population.weights[at:stop].numpy().view(np.int32) & np.int32(MAGNITUDE)
    keys -= np.int32(low)
    live = None if population.keep is None else population.keep[at:stop].numpy() != 0
    non_finite = 0
    if keys.max(initial=-1) >= NON_FINITE - low:
        wrong = keys >= NON_FINITE - low
        non_finite = int(np.count_nonzero(wrong if live is None else wrong & live))
    below = keys < 0
    # Unsigned, what is below wraps around: one comparison is enough.
    inside = keys.view(np.uint32) < np.uint32(high - low)
    if live is not None:
        below &= live
        inside &= live
    indices = np.flatnonzero(inside)
    return Inside(
        int(np.count_nonzero(below)),
        torch.from_numpy(keys[indices]),
        torch.from_numpy(indices + at),
        non_finite,
    )


def _device_inside(population: Population, at: int, stop: int, low: int, high: int) -> Inside:
    bits = population.weights[at:stop].view(torch.int32) & MAGNITUDE
    live = population.live(at, stop)
    below, inside, wrong = bits < low, (bits >= low) & (bits < high), bits >= NON_FINITE
    if live is not None:
        below, inside, wrong = below & live, inside & live, wrong & live
    counts = torch.stack([below.sum(), wrong.sum()]).tolist()
    indices = indices_of(inside)
    return Inside(int(counts[0]), bits[indices] - low, indices + at, int(counts[1]))


def _host_equal(population: Population, at: int, stop: int, bits: int) -> torch.Tensor:
    equal = (population.weights[at:stop].numpy().view(np.uint32) & np.uint32(MAGNITUDE)) == bits
    if population.keep is not None:
        equal &= population.keep[at:stop].numpy() != 0
    return torch.from_numpy(np.flatnonzero(equal) + at)


def _device_equal(population: Population, at: int, stop: int, bits: int) -> torch.Tensor:
    equal = (population.weights[at:stop].view(torch.int32) & MAGNITUDE) == bits
    live = population.live(at, stop)
    return indices_of(equal if live is None else equal & live) + at
