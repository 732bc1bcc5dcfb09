"""A scope's live weights in host memory: numpy over pieces that stay in cache, in threads.

numpy's compares are vectorised and leave the interpreter's lock; torch's of the same are several
times as slow.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from sparsity.population import MAGNITUDE, NON_FINITE, Population, chunk_size

S = TypeVar("S")
T = TypeVar("T")
Int32Array = npt.NDArray[np.int32]

_CPU = torch.device("cpu")
_PIECES = 4  # of a part of a thread's work


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
        return HostKeys(pieces)

    def find_inside(self, low: int, high: int) -> "HostInside":
        """A run of parts a thread: handing out each would cost what the second core gives."""
        size = chunk_size(_CPU) * _PIECES
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
            return [_scan(self._populations[n], n, at, stop, low, high) for n, at, stop in run]

        found = [part for run in in_threads(work_on, runs, _CPU) for part in run]
        return HostInside(self._populations, found)


@dataclass(frozen=True)
class _Part:
    """What a part of population `number` holds of a bracket."""

    number: int
    below: int
    keys: torch.Tensor
    indices: torch.Tensor
    non_finite: int


class HostInside:
    """The weights in a bracket, part by part."""

    def __init__(self, populations: Sequence[Population], parts: Sequence[_Part]) -> None:
        self._populations, self._parts = populations, parts
        self.below = sum(part.below for part in parts)
        self.count = sum(part.keys.numel() for part in parts)
        self.non_finite = sum(part.non_finite for part in parts)

    @property
    def keys(self) -> HostKeys:
        """Of what was collected."""
        return HostKeys([part.keys for part in self._parts])

    def hash_equal(self, key: int) -> HostKeys:
        """Of what was collected, too."""
        return HostKeys(
            [
                self._populations[part.number].hash_positions(part.indices[part.keys == key])
                for part in self._parts
            ]
        )


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


def _scan(population: Population, number: int, at: int, stop: int, low: int, high: int) -> _Part:
    weights: Int32Array = population.weights[at:stop].numpy().view(np.int32)
    keep = None if population.keep is None else population.keep[at:stop].numpy()
    # Reused by all pieces: fresh memory costs more than the comparisons.
    size = chunk_size(_CPU)
    key_scratch, flags = np.empty(size, np.int32), np.empty((3, size), np.bool_)
    below = non_finite = 0
    keys_inside, indices_inside = [], []
    for first in range(0, weights.size, size):
        piece = weights[first : first + size]
        keys = key_scratch[: piece.size]
        under, chosen, live = flags[:, : piece.size]
        np.bitwise_and(piece, np.int32(MAGNITUDE), out=keys)
        np.less(keys, np.int32(low), out=under)
        np.less(keys, np.int32(high), out=chosen)
        if keep is not None:
            np.not_equal(keep[first : first + size], 0, out=live)
            under &= live
            chosen &= live
        if keys.max() >= NON_FINITE:
            wrong = keys >= NON_FINITE
            non_finite += int(np.count_nonzero(wrong if keep is None else wrong & live))
        below += int(np.count_nonzero(under))
        chosen ^= under  # what is under low is under high
        indices = np.flatnonzero(chosen)
        keys_inside.append(keys[indices] - np.int32(low))
        indices_inside.append(indices + (at + first))
    return _Part(
        number,
        below,
        _join(keys_inside, torch.int32),
        _join(indices_inside, torch.int64),
        non_finite,
    )


def _join(pieces: list[npt.NDArray[Any]], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces)) if pieces else torch.empty(0, dtype=dtype)
