"""The passes over weights in host memory, beside plain Python."""

import math
import struct
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.hashing import name_hash
from sparsity.selection import population
from sparsity.selection.host import HostKeys, HostWeights
from sparsity.selection.population import NON_FINITE, Population
from tests.unit.sparsity.oracle import position_hashes

UID = name_hash("w")
weights = st.lists(st.floats(width=32), max_size=40)


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", abs(value)))[0]) & 0x7FFFFFFF


@settings(max_examples=150, deadline=None)
@given(data=st.data(), values=weights)
def test_one_pass_counts_and_collects(data: st.DataObject, values: list[float]) -> None:
    live = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    ends = st.one_of(st.integers(0, NON_FINITE), st.sampled_from([*map(bits_of, values), 0]))
    low, high = sorted((min(data.draw(ends), NON_FINITE), min(data.draw(ends), NON_FINITE)))
    keep = torch.tensor([-1 if alive else 0 for alive in live], dtype=torch.int8)
    for mask in (keep, None):
        chosen = [v for v, alive in zip(values, live, strict=True) if alive or mask is None]
        one = Population(torch.tensor(values, dtype=torch.float32), mask, 5, 11)
        with patch.object(population, "CHUNK", 7):
            here = HostWeights([one])
            got = here.find_inside(low, high)
            keys = keys_of(got.keys)
        assert here.count == len(chosen)
        assert got.below == sum(bits_of(v) < low for v in chosen)
        assert keys == [bits_of(v) - low for v in chosen if low <= bits_of(v) < high]
        assert got.count == len(keys)
        assert got.non_finite == sum(not math.isfinite(v) for v in chosen)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), values=weights)
def test_positions_of_one_magnitude(data: st.DataObject, values: list[float]) -> None:
    at_bits = data.draw(st.sampled_from([*map(bits_of, values), 7]))
    keep = torch.tensor([-1 if i % 3 else 0 for i in range(len(values))], dtype=torch.int8)
    one = Population(torch.tensor(values, dtype=torch.float32), keep, UID, 11)
    hashes = position_hashes("w", 11 + len(values)).view("int64")
    want = [int(hashes[11 + i]) for i, v in enumerate(values) if i % 3 and bits_of(v) == at_bits]
    with patch.object(population, "CHUNK", 7):
        for low in {at_bits, max(at_bits - 5, 0)}:
            found = HostWeights([one]).find_inside(low, at_bits + 1)
            assert keys_of(found.hash_equal(at_bits - low)) == want


def test_threads_keep_the_order(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    monkeypatch.setattr(population, "CHUNK", 13)
    set_threads(3)
    values = torch.arange(1, 1001, dtype=torch.float32)
    pieces = [values[:0], values[:60], values[60:61], values[61:]]
    found = HostWeights([Population(piece, None, UID, 0) for piece in pieces])
    assert keys_of(found.find_inside(0, NON_FINITE).keys) == values.view(torch.int32).tolist()
    (at,) = keys_of(found.find_inside(0, NON_FINITE).hash_equal(int(values[700].view(torch.int32))))
    assert at == int(position_hashes("w", 1000).view("int64")[700 - 61])
    assert torch.get_num_threads() == 3


def test_keys_are_counted_by_digit_and_narrowed() -> None:
    keys = HostKeys([torch.tensor([0, 1, 6, 7, 13]), torch.tensor([5, 13])])
    assert keys.histogram(2, 2).tolist() == [2, 3, 0, 2]
    assert keys.having(1, 2, 2).histogram(0, 2).tolist() == [0, 1, 1, 1]
    # The bits of unsigned 64-bit keys: the first digit of -1 is the last there is.
    assert HostKeys([torch.tensor([-1, 0])]).histogram(62, 2).tolist() == [1, 0, 0, 1]


def keys_of(keys: HostKeys) -> list[int]:
    return [key for piece in keys._pieces for key in piece.tolist()]
