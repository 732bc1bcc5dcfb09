"""The passes over the weights: on the host and on a device (run here on the CPU), beside Python."""

import math
import struct
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity import population
from sparsity.population import NON_FINITE, Population

weights = st.lists(st.floats(width=32), max_size=40)


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", abs(value)))[0]) & 0x7FFFFFFF


@pytest.mark.parametrize("on_host", [True, False])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), values=weights)
def test_one_pass_counts_and_collects(
    data: st.DataObject, on_host: bool, values: list[float]
) -> None:
    live = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    ends = st.one_of(st.integers(0, NON_FINITE), st.sampled_from([*map(bits_of, values), 0]))
    low, high = sorted((min(data.draw(ends), NON_FINITE), min(data.draw(ends), NON_FINITE)))
    keep = torch.tensor([-1 if alive else 0 for alive in live], dtype=torch.int8)
    for mask in (keep, None):
        chosen = [v for v, alive in zip(values, live, strict=True) if alive or mask is None]
        one = Population(torch.tensor(values, dtype=torch.float32), mask, 5, 11)
        with patch.object(population, "CHUNK", 7):  # on the CPU that is the device's chunk too
            got = (
                population._host_inside(one, 0, len(values), low, high)
                if on_host
                else population._device_inside([one], low, high)[0]
            )
        assert got.below == sum(bits_of(v) < low for v in chosen)
        assert got.keys.tolist() == [bits_of(v) - low for v in chosen if low <= bits_of(v) < high]
        inside = [low <= bits_of(v) < high for v in values]
        is_live = live if mask is not None else [True] * len(values)
        assert got.indices.tolist() == [
            i
            for i, (is_in, alive) in enumerate(zip(inside, is_live, strict=True))
            if is_in and alive
        ]
        assert got.non_finite == sum(not math.isfinite(v) for v in chosen)
        assert population.count_live([one]) == len(chosen)


@pytest.mark.parametrize("on_host", [True, False])
@settings(max_examples=100, deadline=None)
@given(data=st.data(), values=weights)
def test_positions_of_one_magnitude(
    data: st.DataObject, on_host: bool, values: list[float]
) -> None:
    at_bits = data.draw(st.sampled_from([*map(bits_of, values), 7]))
    keep = torch.tensor([-1 if i % 3 else 0 for i in range(len(values))], dtype=torch.int8)
    one = Population(torch.tensor(values, dtype=torch.float32), keep, 5, 11)
    scan = population._host_equal if on_host else population._device_equal
    want = [i for i, v in enumerate(values) if i % 3 and bits_of(v) == at_bits]
    with patch.object(population, "CHUNK", 7):
        assert scan(one, 0, len(values), at_bits).tolist() == want


@settings(max_examples=50, deadline=None)
@given(several=st.lists(weights, min_size=1, max_size=5), low=st.sampled_from([0, bits_of(1.0)]))
def test_a_device_finds_what_the_host_finds(several: list[list[float]], low: int) -> None:
    high = bits_of(1e3)
    populations = [
        Population(
            torch.tensor(values, dtype=torch.float32),
            torch.tensor([-(i % 2) for i in range(len(values))], dtype=torch.int8)
            if n % 2
            else None,
            n,
            3 * n,
        )
        for n, values in enumerate(several)
    ]
    want = population.find_inside(populations, low, high)
    with patch.object(population, "CHUNK", 7):
        got = population._device_inside(populations, low, high)
    for one, other in zip(got, want, strict=True):
        assert (one.below, one.non_finite) == (other.below, other.non_finite)
        assert torch.equal(one.keys, other.keys) and torch.equal(one.indices, other.indices)
    with patch.object(Population, "_on_host", False):
        on_device = population.count_live(populations)
    assert on_device == population.count_live(populations)


def test_a_device_is_waited_for_twice_whatever_the_number_of_populations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the counts, and for the sizes of what was found."""
    waits: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any) -> Any:
            waits.append(name)
            return original(*args)

        return waiting

    for owner, name in (
        (population, "indices_of"),
        (torch.Tensor, "tolist"),
        (torch.Tensor, "item"),
        (torch.Tensor, "__int__"),
        (torch.Tensor, "__bool__"),
    ):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    population._device_inside(
        [Population(torch.randn(9), None, n, 0) for n in range(70)], 0, NON_FINITE
    )
    assert sorted(waits) == ["indices_of", "tolist"]


def test_threads_keep_the_order(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    monkeypatch.setattr(population, "CHUNK", 13)
    set_threads(3)
    values = torch.arange(1, 1001, dtype=torch.float32)
    pieces = [values[:0], values[:60], values[60:61], values[61:]]
    populations = [Population(piece, None, 5, 0) for piece in pieces]
    found = population.find_inside(populations, 0, NON_FINITE)
    assert [inside.keys.numel() for inside in found] == [piece.numel() for piece in pieces]
    assert torch.equal(torch.cat([inside.keys for inside in found]), values.view(torch.int32))
    assert [inside.indices.tolist() for inside in found] == [
        list(range(piece.numel())) for piece in pieces
    ]
    (at,) = population.find_equal(populations[3:], int(values[700].view(torch.int32)))
    assert at.tolist() == [700 - 61]
    assert torch.get_num_threads() == 3
