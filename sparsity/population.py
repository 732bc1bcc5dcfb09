"""What a threshold ranges over: live magnitudes on this rank, as bit patterns, read in one pass.

Magnitudes of finite floats order like the 31 low bits of their fp32 pattern, so everything here
compares integers. On CPU the passes are numpy's (vectorised compares, which leave the interpreter's
lock) over pieces that stay in cache, one thread per torch thread; elsewhere they are torch's.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from distributed.hashing import position_hash

MAGNITUDE = 0x7FFFFFFF
NON_FINITE = 0x7F800000  # the bits of infinity; NaNs lie above
# Weights worked on at a time: temporaries stay in cache and add next to nothing to a rank's memory;
# with fewer, two threads spend their time on the interpreter's lock.
CHUNK = 1 << 18
_DEVICE_CHUNK = 1 << 24  # on a GPU a launch costs more than memory traffic

S = TypeVar("S")
_PIECES = 4  # of a part of the host's work

T = TypeVar("T")
Int32Array = npt.NDArray[np.int32]
Int8Array = npt.NDArray[np.int8]


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

    def __post_init__(self) -> None:
        """Bits of another type would be read as other numbers."""
        assert self.weights.dtype == torch.float32, self.weights.dtype

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
        sample = self.weights[::stride].clone(memory_format=torch.contiguous_format)
        bits = sample.view(torch.int32).bitwise_and_(MAGNITUDE)
        return bits if self.keep is None else bits[self.keep[::stride] != 0]

    def hash_positions(self, indices: torch.Tensor) -> torch.Tensor:
        """Hashes, int64, of the logical positions of the weights at `indices` int64 [m]."""
        return position_hash(self.uid, indices + self.start)

    @property
    def _on_host(self) -> bool:
        return self.weights.device.type == "cpu"


def find_inside(populations: Sequence[Population], low: int, high: int) -> list[Inside]:
    """For each, count below the bracket and collect what is in it, in one pass."""
    if populations and not populations[0]._on_host:
        return _device_inside(populations, low, high)

    def work(population: Population, at: int, stop: int) -> Inside:
        return _host_inside(population, at, stop, low, high)

    return [_join_parts(parts) for parts in _scan(populations, work)]


def count_live(populations: Sequence[Population]) -> int:
    """Number of live weights of all; waits for a device once."""
    whole = sum(p.weights.numel() for p in populations if p.keep is None)
    masks = [population.keep for population in populations if population.keep is not None]
    if not masks:
        return whole
    if populations[0]._on_host:  # several times as fast as torch's
        return whole + sum(int(np.count_nonzero(mask.numpy())) for mask in masks)
    return whole + int(torch.stack([mask.count_nonzero() for mask in masks]).sum())


def joined(pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same keys, on a device in one tensor: a launch costs more there than a copy."""
    is_worth_it = len(pieces) > 1 and pieces[0].device.type != "cpu"
    return [torch.cat(list(pieces))] if is_worth_it else list(pieces)


def find_equal(populations: Sequence[Population], magnitude_bits: int) -> list[torch.Tensor]:
    """For each, indices int64 of the live weights whose magnitude has exactly these bits."""

    def work(population: Population, at: int, stop: int) -> torch.Tensor:
        find = _host_equal if population._on_host else _device_equal
        return find(population, at, stop, magnitude_bits)

    return [torch.cat(parts) for parts in _scan(populations, work)]


def _scan(
    populations: Sequence[Population], work: Callable[[Population, int, int], T]
) -> list[list[T]]:
    """`work(population, at, stop)` part by part; what came of each population's, at least one."""
    if not populations:
        return []
    device = populations[0].weights.device
    size = chunk_size(device) * (_PIECES if device.type == "cpu" else 1)
    parts = [
        (number, at, min(at + size, population.weights.numel()))
        for number, population in enumerate(populations)
        for at in range(0, max(population.weights.numel(), 1), size)
    ]
    # A run of parts a thread: handing out each on its own would cost what the second core gives.
    numel = sum(stop - at for _, at, stop in parts)
    share = numel // host_threads(device) + 1
    runs: list[list[tuple[int, int, int]]] = []
    done = 0
    for number, at, stop in parts:
        if len(runs) <= done // share:
            runs.append([])
        runs[-1].append((number, at, stop))
        done += stop - at
    answers: list[list[T]] = [[] for _ in populations]

    def work_on(run: list[tuple[int, int, int]]) -> list[tuple[int, T]]:
        return [(number, work(populations[number], at, stop)) for number, at, stop in run]

    for run in in_threads(work_on, runs, device):
        for number, answer in run:
            answers[number].append(answer)
    return answers


def _host_inside(population: Population, at: int, stop: int, low: int, high: int) -> Inside:
    weights, keep = _host_views(population, at, stop)
    # Reused by all pieces: fresh memory costs more than the comparisons.
    scratch = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.bool_), np.empty(CHUNK, np.bool_)
    below = non_finite = 0
    keys_inside, indices_inside = [], []
    for first in range(0, weights.size, CHUNK):
        piece = weights[first : first + CHUNK]
        keys, chosen, live = (array[: piece.size] for array in scratch)
        np.bitwise_and(piece, np.int32(MAGNITUDE), out=keys)
        np.subtract(keys, np.int32(low), out=keys)
        if keep is not None:
            np.not_equal(keep[first : first + CHUNK], 0, out=live)
        if keys.max() >= NON_FINITE - low:
            wrong = keys >= NON_FINITE - low
            non_finite += int(np.count_nonzero(wrong if keep is None else wrong & live))
        np.less(keys, 0, out=chosen)
        if keep is not None:
            chosen &= live
        below += int(np.count_nonzero(chosen))
        # Unsigned, what is below wraps around: one comparison is enough.
        np.less(keys.view(np.uint32), np.uint32(high - low), out=chosen)
        if keep is not None:
            chosen &= live
        indices = np.flatnonzero(chosen)
        keys_inside.append(keys[indices])
        indices_inside.append(indices + (at + first))
    return Inside(
        below,
        _join(keys_inside, torch.int32),
        _join(indices_inside, torch.int64),
        non_finite,
    )


def _host_equal(population: Population, at: int, stop: int, bits: int) -> torch.Tensor:
    weights, keep = _host_views(population, at, stop)
    scratch = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.bool_)
    found = []
    for first in range(0, weights.size, CHUNK):
        piece = weights[first : first + CHUNK]
        magnitudes, equal = (array[: piece.size] for array in scratch)
        np.bitwise_and(piece, np.int32(MAGNITUDE), out=magnitudes)
        np.equal(magnitudes, np.int32(bits), out=equal)
        if keep is not None:
            equal &= keep[first : first + CHUNK] != 0
        found.append(np.flatnonzero(equal) + (at + first))
    return _join(found, torch.int64)


def _host_views(population: Population, at: int, stop: int) -> tuple[Int32Array, Int8Array | None]:
    """Bits of the weights and the mask of a part, as numpy's."""
    keep = population.keep
    bits = population.weights[at:stop].numpy().view(np.int32)
    return bits, None if keep is None else keep[at:stop].numpy()


def _join(pieces: list[npt.NDArray[Any]], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces)) if pieces else torch.empty(0, dtype=dtype)


def _device_inside(populations: Sequence[Population], low: int, high: int) -> list[Inside]:
    """As `find_inside`; waits for the device twice a chunk, whatever the number of populations."""
    empty = populations[0].weights.new_empty(0, dtype=torch.int32)
    found = [[Inside(0, empty, empty.long(), 0)] for _ in populations]
    for parts in _device_parts(populations):
        chosen, counts = [], []
        for number, at, stop in parts:
            population = populations[number]
            bits, live = population.weights[at:stop].view(torch.int32), population.live(at, stop)
            bits = bits & MAGNITUDE
            below, inside, wrong = bits < low, (bits >= low) & (bits < high), bits >= NON_FINITE
            if live is not None:
                below, inside, wrong = below & live, inside & live, wrong & live
            chosen.append(inside)
            counts.append(torch.stack([below.sum(), inside.sum(), wrong.sum()]))
        numbers = torch.stack(counts).tolist()
        sizes = [inside for _, inside, _ in numbers]
        everywhere = torch.split_with_sizes(indices_of(torch.cat(chosen)), sizes)
        before = 0  # weights of the parts in front
        for (number, at, stop), (below, _, wrong), there in zip(
            parts, numbers, everywhere, strict=True
        ):
            indices = there + (at - before)
            keys = (populations[number].weights.view(torch.int32)[indices] & MAGNITUDE) - low
            found[number].append(Inside(below, keys, indices, wrong))
            before += stop - at
    return [_join_parts(inside) for inside in found]


def _device_parts(populations: Sequence[Population]) -> Iterator[list[tuple[int, int, int]]]:
    """(population's number, at, stop): all weights, in lists of one to two chunks each."""
    parts: list[tuple[int, int, int]] = []
    numel = 0
    for number, population in enumerate(populations):
        size = chunk_size(population.weights.device)
        for at in range(0, population.weights.numel(), size):
            parts.append((number, at, min(at + size, population.weights.numel())))
            numel += parts[-1][2] - at
            if numel >= size:
                yield parts
                parts, numel = [], 0
    if parts:
        yield parts


def _join_parts(parts: Sequence[Inside]) -> Inside:
    return Inside(
        sum(part.below for part in parts),
        torch.cat([part.keys for part in parts]),
        torch.cat([part.indices for part in parts]),
        sum(part.non_finite for part in parts),
    )


def _device_equal(population: Population, at: int, stop: int, bits: int) -> torch.Tensor:
    equal = (population.weights[at:stop].view(torch.int32) & MAGNITUDE) == bits
    live = population.live(at, stop)
    return indices_of(equal if live is None else equal & live) + at
