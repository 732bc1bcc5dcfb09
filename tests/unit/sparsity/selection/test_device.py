"""The passes of a GPU, by Triton's interpreter where there is none: as the host's and numpy's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed.fragment import Fragment
from distributed.hashing import hex_digest, name_hash
from sparsity.patterns.single import selected_weights
from sparsity.selection import device, threshold
from sparsity.selection.device import DeviceWeights, Table, prune
from sparsity.selection.host import HostWeights
from sparsity.selection.masks import PRUNED, FragmentMask
from sparsity.selection.population import NON_FINITE, Population
from sparsity.selection.threshold import Cut, NonFiniteWeights
from tests.unit.sparsity.oracle import expected_digest, expected_keep
from tests.unit.sparsity.selection.test_host import bits_of, keys_of
from tests.unit.sparsity.simulation import Cluster, split_randomly

pytest.importorskip("triton", reason="Triton is there on Linux only")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AWKWARD = [0.0, -0.0, 0.5, -0.5, 1e-45, 3.4028235e38, float("inf"), float("nan"), -0.25]
values = st.one_of(st.sampled_from(AWKWARD), st.floats(width=32))
several = st.lists(st.lists(values, max_size=45), min_size=1, max_size=4)
bits = st.one_of(st.integers(0, NON_FINITE), st.sampled_from([bits_of(v) for v in AWKWARD[:6]]))
interpreted = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for any device, with tiles that small fragments do not fill and large ones exceed."""
    monkeypatch.setattr(device, "has_kernels", lambda _: True)
    monkeypatch.setattr(device, "_TILE", 64)
    monkeypatch.setattr(device, "_BLOCK", 32)
    yield


def build(several: list[list[float]]) -> list[Population]:
    """Some with a mask; positions and parameters differ."""
    return [
        Population(
            torch.tensor(values, dtype=torch.float32, device=DEVICE),
            None if n % 2 else some_keep(len(values), n),
            name_hash(str(n)),
            7 * n,
        )
        for n, values in enumerate(several)
    ]


def some_keep(numel: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(numel, generator=generator) < 0.5, -1, 0).to(DEVICE, torch.int8)


def on_host(populations: list[Population]) -> HostWeights:
    return HostWeights([population.on_host() for population in populations])


@interpreted
@given(several=several, stride=st.integers(1, 9), digit=st.integers(0, 2047))
def test_digits_are_counted(several: list[list[float]], stride: int, digit: int) -> None:
    ours, theirs = DeviceWeights(build(several)), on_host(build(several))
    assert ours.count == theirs.count
    for keys, want in ((ours.keys, theirs.keys), (ours.sample(stride), theirs.sample(stride))):
        first = want.histogram(20, 11)
        assert torch.equal(keys.histogram(20, 11), first)
        for chosen in {digit, int(first.argmax())}:
            left, wanted = keys.having(chosen, 20, 11), want.having(chosen, 20, 11)
            second = wanted.histogram(10, 10)
            assert torch.equal(left.histogram(10, 10), second)
            most = int(second.argmax())
            third = left.having(most, 10, 10).histogram(0, 10)
            assert torch.equal(third, wanted.having(most, 10, 10).histogram(0, 10))


@interpreted
@given(several=several, ends=st.tuples(bits, bits))
def test_one_pass_counts_and_collects(several: list[list[float]], ends: tuple[int, int]) -> None:
    low, high = min(ends), max(ends)
    ours = DeviceWeights(build(several)).find_inside(low, high)
    theirs = on_host(build(several)).find_inside(low, high)
    for field in ("below", "count", "non_finite"):
        assert getattr(ours, field) == getattr(theirs, field), field
    for shift in (20, 9):
        assert torch.equal(ours.keys.histogram(shift, 11), theirs.keys.histogram(shift, 11))
    keys = set(keys_of(theirs.keys))
    for key in [*sorted(keys)[:3], 1234567]:
        got, want = keys_of(ours.hash_equal(key)), keys_of(theirs.hash_equal(key))
        assert sorted(got) == sorted(want)


def test_a_bracket_with_more_than_there_is_room_for_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched = count_launches(monkeypatch)
    weights = [Population(torch.full((1000,), 0.5, device=DEVICE), None, 3, 0)]
    inside = DeviceWeights(weights).find_inside(bits_of(0.5), bits_of(0.5) + 1)
    assert inside.count == 1000 == int(inside.keys.histogram(0, 11)[0])
    assert len(set(keys_of(inside.hash_equal(0)))) == 1000
    assert launched.count("collect") == 2


@interpreted
@given(several=several, data=st.data())
def test_pruning_equals_the_generic_one(several: list[list[float]], data: st.DataObject) -> None:
    """Masks, counts and digests, with cuts among ties, eligible weights, and a part owned."""
    populations = build(several)
    masks: list[list[FragmentMask]] = [[], []]
    cuts = []
    for n, population in enumerate(populations):
        numel = population.weights.numel()
        owned = sorted(data.draw(st.tuples(st.integers(0, numel), st.integers(0, numel))))
        at = population.start
        fragment = Fragment(str(n), at, numel, 0, 0, at + owned[0], at + owned[1])
        for copies in masks:
            mask = FragmentMask(fragment, torch.device(DEVICE))
            mask.keep.copy_(some_keep(numel, n + 100))
            copies.append(mask)
        of_any = population.weights.view(torch.int32).tolist() or [5]
        chosen = data.draw(st.one_of(bits, st.sampled_from([b & 0x7FFFFFFF for b in of_any])))
        tie = data.draw(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)))
        cuts.append(Cut(chosen, tie))
    ours = prune(
        dict(zip(masks[0], populations, strict=True)), dict(zip(masks[0], cuts, strict=True))
    )
    theirs = [
        mask.prune(selected_weights(population, cut))
        for mask, population, cut in zip(masks[1], populations, cuts, strict=True)
    ]
    for mine, other, want in zip(*masks, theirs, strict=True):
        assert torch.equal(mine.keep, other.keep)
        assert ours[mine][0] == want[0]
        assert hex_digest(ours[mine][1]) == hex_digest(want[1])


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("bracketed", [True, False])
def test_masks_equal_the_oracle(
    monkeypatch: pytest.MonkeyPatch, ranks: int, bracketed: bool
) -> None:
    """Whole updates, several scopes, many ties."""
    if bracketed:
        bracket_all(monkeypatch)
    rng = np.random.default_rng(3)
    weights = {n: rng.normal(0, 0.02, 200 + i).astype(np.float32) for i, n in enumerate("abc")}
    weights["b"] = np.round(weights["b"], 2)
    bounds = {name: split_randomly(w.size, ranks, rng) for name, w in weights.items()}
    cluster = Cluster(weights, bounds, device=DEVICE)
    live = {name: np.ones(w.size, bool) for name, w in weights.items()}
    scopes, total = [["a", "b"], ["c"]], 0
    for counts in ([150, 20], [0, 1], [125, 150]):
        pruned, digest = cluster.prune(scopes, counts)
        assert pruned == sum(counts)
        total += digest
        for names, count in zip(scopes, counts, strict=True):
            some = {n: weights[n] for n in names}
            live |= expected_keep(some, count, live={n: live[n] for n in names})
        got = cluster.keep()
        assert all(np.array_equal(got[n], live[n]) for n in weights)
        assert hex_digest(total) == expected_digest(live)


@pytest.mark.parametrize("pattern", ["2:4", "4x2"])
def test_patterns_are_pruned_as_on_the_host(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """N:M by the kernels; blocks ranked by them, and pruned by torch."""
    rng = np.random.default_rng(4)
    weights = {"a": np.round(rng.normal(0, 1, 16 * 24), 1).astype(np.float32)}
    clusters = []
    for kernels in (True, False):
        monkeypatch.setattr(device, "has_kernels", lambda _, found=kernels: found)
        bounds = {"a": [0, 130, 131, 384]}
        cluster = Cluster(weights, bounds, pattern=pattern, shapes={"a": (16, 24)}, device=DEVICE)
        clusters.append((cluster.prune([["a"]], [104]), cluster.prune([["a"]], [88]), cluster))
    assert clusters[0][:2] == clusters[1][:2]
    keep = clusters[0][2].keep()["a"]
    assert np.array_equal(keep, clusters[1][2].keep()["a"])
    assert (~keep).sum() == 192


def test_launches_do_not_grow_with_the_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    bracket_all(monkeypatch)
    monkeypatch.setattr(device, "_ROOM", 2)
    launched = count_launches(monkeypatch)
    rng = np.random.default_rng(5)
    counts = []
    for fragments in (1, 30):
        launched.clear()
        names = [f"w{i}" for i in range(fragments)]
        weights = {n: rng.normal(0, 1, 900 // fragments).astype(np.float32) for n in names}
        cluster = Cluster(weights, {n: [0, w.size] for n, w in weights.items()}, device=DEVICE)
        cluster.prune([names], [700])
        counts.append(sorted(launched))
    # Two histograms of the sample's first digit and of both ends, one or two of the candidates.
    assert counts[0] == counts[1]
    assert set(counts[0]) == {"count_live", "collect", "histogram", "prune"}
    assert len(counts[0]) <= 1 + 3 + 1 + 3 + 1


def test_non_finite_weights_are_refused() -> None:
    for poison in (float("inf"), float("nan")):
        weights = {"a": np.array([0.5, 0.25, poison, 1.0], np.float32)}
        with pytest.raises(NonFiniteWeights):
            Cluster(weights, {"a": [0, 1, 4]}, device=DEVICE).select([["a"]], [1])


def test_a_mask_that_prunes_all_leaves_nothing() -> None:
    keep = torch.full((40,), PRUNED, dtype=torch.int8, device=DEVICE)
    nothing = DeviceWeights([Population(torch.randn(40, device=DEVICE), keep, 1, 0)])
    assert nothing.count == 0
    assert not nothing.keys.histogram(20, 11).any()
    assert nothing.find_inside(0, NON_FINITE).count == 0


def test_an_empty_fragment() -> None:
    nothing = DeviceWeights([Population(torch.empty(0, device=DEVICE), None, 1, 0)])
    assert nothing.count == 0 and not nothing.sample(3).histogram(20, 11).any()


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(capability: int) -> None:
    """An A100's and an H100's instructions; nothing is kept in local memory, which is slow."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, "-m", "tests.unit.sparsity.compile_kernels", str(capability)],
        cwd=Path(__file__).parents[4],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    for name, takes in json.loads(printed).items():
        assert takes["local"] == takes["stack"] == 0, (name, takes)


def test_where_triton_does_not_run_the_host_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No compiler, say: the same masks, and a warning that says why they take longer."""
    monkeypatch.undo()  # the fixture's kernels for any device

    def fail(_: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(device, "_try_kernels", fail)
    has_kernels = device.has_kernels.__wrapped__  # not what it found before
    assert not has_kernels(torch.device("cpu")) and not caplog.records
    assert not has_kernels(torch.device("cuda", 0))
    assert "Failed to find C compiler" in caplog.text


def test_the_trial_runs_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = count_launches(monkeypatch)
    device._try_kernels(torch.device(DEVICE))
    assert sorted(launched) == ["collect", "count_live", "histogram", "prune"]


def test_a_wrong_answer_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told, like a compiler that is missing."""
    monkeypatch.setattr(device, "prune", lambda masks, _: {mask: (2, 0) for mask in masks})
    with pytest.raises(RuntimeError, match="3, 3, 2 of 3 weights"):
        device._try_kernels(torch.device(DEVICE))


def test_ranks_with_kernels_and_without_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """One node may lack a compiler: rounds, cuts and masks are the same."""
    bracket_all(monkeypatch)
    rng = np.random.default_rng(6)
    weights = {n: np.round(rng.normal(0, 1, 700), 2).astype(np.float32) for n in "ab"}
    bounds = {name: split_randomly(w.size, 4, rng) for name, w in weights.items()}
    asked = iter(range(10**6))
    for count in (300, 500):
        monkeypatch.setattr(device, "has_kernels", lambda _: next(asked) % 2 == 0)
        cluster = Cluster(weights, bounds, device=DEVICE)
        cluster.prune([["a", "b"]], [count])
        want = expected_keep(weights, count)
        assert all(np.array_equal(cluster.keep()[n], want[n]) for n in weights)


def test_positions_beyond_32_bits() -> None:
    """The piece of a parameter of a hundred billion weights."""
    values = torch.full((100,), 0.5, device=DEVICE)
    at = 100 * 2**30 + 7
    one = Population(values, None, name_hash("a"), at)
    hashes = keys_of(DeviceWeights([one]).find_inside(bits_of(0.5), bits_of(0.5) + 1).hash_equal(0))
    wanted = one.on_host().hash_positions(torch.arange(100)).tolist()
    assert sorted(hashes) == sorted(wanted)
    masks = [
        FragmentMask(Fragment("a", at, 100, 0, 0, at + 20, at + 90), torch.device(DEVICE))
        for _ in range(2)
    ]
    cut = Cut(bits_of(0.5), tie=sorted(h ^ -(2**63) for h in wanted)[49])
    ours = prune({masks[0]: one}, {masks[0]: cut})[masks[0]]
    theirs = masks[1].prune(selected_weights(one, cut))
    assert torch.equal(masks[0].keep, masks[1].keep)
    assert ours[0] == theirs[0] and hex_digest(ours[1]) == hex_digest(theirs[1])
    assert int((masks[0].keep == PRUNED).sum()) == 50


def test_addresses_of_other_tensors_are_refused() -> None:
    """A kernel cannot tell; torch would have."""
    values, keep = torch.ones(8, device=DEVICE), torch.ones(8, dtype=torch.int8, device=DEVICE)
    for wrong in (keep[:7], keep.int(), keep.repeat(2)[::2], torch.ones(8, device="meta")):
        with pytest.raises(AssertionError):
            Table([Population(values, wrong, 0, 0)])
    with pytest.raises(AssertionError):
        Table([Population(values, None, 0, 0), Population(values.to("meta"), None, 0, 0)])


def bracket_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "BRACKET_FROM", 64)
    monkeypatch.setattr(threshold, "SAMPLE_SIZE", 200)
    monkeypatch.setattr(threshold, "_WIDEST", 0.5)


def count_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    launched: list[str] = []
    original = Table.launch

    def counted(self: Table, kernel: Any, *arguments: Any, **constants: Any) -> None:
        launched.append(kernel.fn.__name__)
        original(self, kernel, *arguments, **constants)

    monkeypatch.setattr(Table, "launch", counted)
    return launched
