"""What a threshold ranges over: live magnitudes on this rank, as bit patterns.

Magnitudes of finite floats order like the 31 low bits of their fp32 pattern, so everything here
compares integers. host.py answers the questions of `LiveWeights` in numpy, device.py on a GPU.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch

from distributed.hashing import position_hash

MAGNITUDE_BITS = 31
MAGNITUDE = 0x7FFFFFFF
NON_FINITE = 0x7F800000  # the bits of infinity; NaNs lie above
# Weights worked on at a time: temporaries stay in a cache and add little to a rank's memory; with
# fewer, two threads spend their time on the interpreter's lock.
CHUNK = 1 << 18
_DEVICE_CHUNK = 1 << 24  # on a GPU a launch costs more than memory traffic


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

    def on_host(self) -> "Population":
        """The same, in host memory: a copy if it is elsewhere."""
        keep = None if self.keep is None else self.keep.cpu()
        return Population(self.weights.cpu(), keep, self.uid, self.start)

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

    def hash_positions(self, indices: torch.Tensor) -> torch.Tensor:
        """Hashes, int64, of the logical positions of the weights at `indices` int64 [m]."""
        return position_hash(self.uid, indices + self.start)


class Keys(Protocol):
    """Unsigned integers of this rank, to be counted digit by digit, most significant first."""

    def histogram(self, shift: int, bits: int) -> torch.Tensor:
        """Counts int64 [2^bits], on the host, of the keys by their digit (key >> shift)."""
        ...

    def having(self, digit: int, shift: int, bits: int) -> "Keys":
        """Those whose digit of `bits` bits at `shift` is `digit`."""
        ...


class Inside(Protocol):
    """What one pass over a scope found of a bracket [low, high) of magnitude bits."""

    below: int  # live weights under it
    count: int  # in it
    non_finite: int  # infinite or NaN

    @property
    def keys(self) -> Keys:
        """The bits, less `low`, of the live weights in it."""
        ...

    def hash_equal(self, key: int) -> Keys:
        """Hashes, unsigned, of the positions of the weights in it with that key."""
        ...


class LiveWeights(Protocol):
    """The live weights of one scope on this rank."""

    count: int

    @property
    def keys(self) -> Keys:
        """The bits of all their magnitudes, read anew for each question: nothing is copied."""
        ...

    def sample(self, stride: int) -> Keys:
        """The bits of those among every `stride`-th weight of each population."""
        ...

    def find_inside(self, low: int, high: int) -> Inside:
        """Count below the bracket and collect what is in it, in one pass."""
        ...
