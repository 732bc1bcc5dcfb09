"""A scope's live weights in host memory: numpy over pieces that stay in cache, in threads.

numpy's compares are vectorised and leave the interpreter's lock; torch's of the same are several
times as slow.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from sparsity.selection.population import (
    MAGNITUDE,
    NON_FINITE,
    Population,
    chunk_size,
    compare,
    indices_of,
)

S = TypeVar("S")
T = TypeVar("T")
Int32Array = npt.NDArray[np.int32]

_CPU = torch.device("cpu")
_LOOK = 2  # chunks that a thread looks at: with fewer it waits for the interpreter's lock
_PART = 4  # looks of a part of a thread's work


def host_threads(device: torch.device) -> int:
    """How many threads share the work on tensors of `device`."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def in_threads(work: Callable[[S], T], items: Sequence[S], device: torch.device) -> list[T]:
    """`work` on each item, in order; on the host one thread per torch thread."""
    threads = host_threads(device)
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    try:  # a thread of ours must not start torch's as well
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # a worker's setting is the process's too


class HostKeys:
    """Keys, int32 or the bits of unsigned 64-bit ones as int64, in pieces."""

    def __init__(self, pieces: Iterable[torch.Tensor]) -> None:
        """`pieces` are read once for each question."""
        self._pieces = pieces

    def histogram(self, shift: int, bits: int) -> torch.Tensor:
        """Counts int64 [2^bits] of the keys by their digit."""
        counts = torch.zeros(1 << bits, dtype=torch.int64)
        for piece in self._pieces:
            counts += torch.bincount(_digit(piece, shift, bits), minlength=1 << bits)
        return counts

    def having(self, digit: int, shift: int, bits: int) -> "HostKeys":
        """Those with this digit, copied: a histogram leaves few."""
        kept = [piece[_digit(piece, shift, bits) == digit] for piece in self._pieces]
        return HostKeys([piece for piece in kept if piece.numel()])


def _digit(keys: torch.Tensor, shift: int, bits: int) -> torch.Tensor:
    return (keys >> shift) & ((1 << bits) - 1)


class HostWeights:
    """The live weights of some populations."""

    def __init__(self, populations: Sequence[Population]) -> None:
        """Counts them; a mask that prunes nothing is not looked at again."""
        live = [_count_live(population) for population in populations]
        self.count = sum(live)
        self._populations = [
            replace(population, keep=None) if population.weights.numel() == n else population
            for population, n in zip(populations, live, strict=True)
        ]

    @property
    def keys(self) -> HostKeys:
        """Of all live weights."""
        return HostKeys(_LiveBits(self._populations))

    def sample(self, stride: int) -> HostKeys:
        """Of every `stride`-th weight."""
        pieces = []
        for population in self._populations:
            sample = population.weights[::stride].clone(memory_format=torch.contiguous_format)
            bits = sample.view(torch.int32).bitwise_and_(MAGNITUDE)
            keep = population.keep
            pieces.append(bits if keep is None else bits[keep[::stride] != 0])
        return HostKeys([_join(pieces)])

    def find_inside(self, low: int, high: int) -> "HostInside":
        """A run of parts a thread: handing out each would cost what the second core gives."""
        size = chunk_size(_CPU) * _LOOK * _PART
        parts = [
            (number, at, min(at + size, population.weights.numel()))
            for number, population in enumerate(self._populations)
            for at in range(0, population.weights.numel(), size)
        ]
        share = sum(stop - at for _, at, stop in parts) // host_threads(_CPU) + 1
        runs: list[list[tuple[int, int, int]]] = []
        done = 0
        for number, at, stop in parts:
            if len(runs) <= done // share:
                runs.append([])
            runs[-1].append((number, at, stop))
            done += stop - at

        def work_on(run: list[tuple[int, int, int]]) -> list[_Part]:
            scan = _Scan(low, high)
            return [scan.part(self._populations[n], n, at, stop) for n, at, stop in run]

        found = [part for run in in_threads(work_on, runs, _CPU) for part in run]
        return HostInside(self._populations, found)


@dataclass(frozen=True)
class _Part:
    """What a part of population `number`, from weight `start` on, holds of a bracket."""

    number: int
    start: int
    below: int
    keys: torch.Tensor
    indices: torch.Tensor  # int32, from `start` on
    non_finite: int


class HostInside:
    """The weights in a bracket, part by part."""

    def __init__(self, populations: Sequence[Population], parts: Sequence[_Part]) -> None:
        self._populations, self._parts = populations, parts
        self.below = sum(part.below for part in parts)
        self.non_finite = sum(part.non_finite for part in parts)
        self._keys = _join([part.keys for part in parts])
        self.count = self._keys.numel()

    @property
    def keys(self) -> HostKeys:
        """Of what was collected."""
        return HostKeys([self._keys])

    def hash_equal(self, key: int) -> HostKeys:
        """Of what was collected, too."""
        hashes = []
        for part in self._parts:
            equal = indices_of(compare(part.keys, "==", key))
            if equal.numel():
                indices = part.indices[equal].long() + part.start
                hashes.append(self._populations[part.number].hash_positions(indices))
        return HostKeys(hashes)


class _LiveBits:
    """The live magnitudes' bits of some populations, read anew at each iteration."""

    def __init__(self, populations: Sequence[Population]) -> None:
        self._populations = populations

    def __iter__(self) -> Iterator[torch.Tensor]:
        for population in self._populations:
            yield from population.live_bits()


def _count_live(population: Population) -> int:
    if population.keep is None:
        return population.weights.numel()
    return int(np.count_nonzero(population.keep.numpy()))  # several times as fast as torch's


class _Scan:
    """A thread's pass over its parts; new memory for each would cost more than the comparisons."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = np.int32(low), np.int32(high)
        self._size = chunk_size(_CPU) * _LOOK
        most = self._size * 3 // 2 + 1
        self._keys, self._flags = np.empty(most, np.int32), np.empty((3, most), np.bool_)

    def part(self, population: Population, number: int, start: int, stop: int) -> _Part:
        weights: Int32Array = population.weights[start:stop].numpy().view(np.int32)
        keep = None if population.keep is None else population.keep[start:stop].numpy()
        below = non_finite = 0
        found_keys, found_indices = [], []
        # Looks of one size: a short one costs a thread as much waiting.
        size = -(-weights.size // max(round(weights.size / self._size), 1))
        for at in range(0, weights.size, size):
            piece = weights[at : at + size]
            keys = self._keys[: piece.size]
            under, chosen, live = self._flags[:, : piece.size]
            np.bitwise_and(piece, np.int32(MAGNITUDE), out=keys)
            np.less(keys, self._low, out=under)
            np.less(keys, self._high, out=chosen)
            if keep is not None:
                np.not_equal(keep[at : at + piece.size], 0, out=live)
                under &= live
                chosen &= live
            if keys.max() >= NON_FINITE:
                wrong = keys >= NON_FINITE
                non_finite += int(np.count_nonzero(wrong if keep is None else wrong & live))
            below += int(np.count_nonzero(under))
            chosen ^= under  # what is under the bracket is under its end
            indices = np.flatnonzero(chosen)
            found_keys.append(keys[indices] - self._low)
            found_indices.append((indices + at).astype(np.int32))
        keys_there, indices_there = (
            _join([torch.from_numpy(a) for a in found]) for found in (found_keys, found_indices)
        )
        return _Part(number, start, below, keys_there, indices_there, non_finite)


def _join(pieces: list[torch.Tensor]) -> torch.Tensor:
    """Int32 pieces in one: each costs a question a few operations more."""
    return torch.cat([torch.empty(0, dtype=torch.int32), *pieces])
