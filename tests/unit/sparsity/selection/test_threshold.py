"""The exact cut over simulated ranks, against numpy's sort by (magnitude, hash)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed.fragment import Fragment
from distributed.hashing import hex_digest, name_hash
from sparsity.patterns.name import PatternName
from sparsity.pruning import update_masks
from sparsity.selection import host, population, threshold
from sparsity.selection.host import HostInside, HostWeights
from sparsity.selection.masks import FragmentMask
from sparsity.selection.population import Population
from sparsity.selection.threshold import Cut, NonFiniteWeights, run, select
from sparsity.targets import Scope
from tests.unit.sparsity.oracle import expected_digest, expected_keep, position_hashes
from tests.unit.sparsity.simulation import (
    AWKWARD,
    LARGEST,
    Cluster,
    Float32Array,
    split_randomly,
)

VALUE_BYTES = 8 + 32 * 1024  # live weights; 3 rounds of 2^11, 2^10 and 2^10 int64 counts
TIE_BYTES = 80 * 1024  # at most 6 more: four of 2^11 and two of 2^10

values = st.one_of(
    st.sampled_from(AWKWARD),
    st.sampled_from([0.25, -0.25]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def parameter(max_size: int = 60) -> st.SearchStrategy[Float32Array]:
    return st.lists(values, max_size=max_size).map(lambda v: np.array(v, np.float32))


def check(
    weights: Mapping[str, Float32Array],
    bounds: Mapping[str, Sequence[int]],
    scopes: Sequence[Sequence[str]],
    counts: Sequence[int],
) -> Cluster:
    """Prune on the simulated cluster and compare masks, count and digest with the oracle's."""
    cluster = Cluster(weights, bounds)
    pruned, digest = cluster.prune(scopes, counts)
    want: dict[str, np.ndarray] = {}
    for names, count in zip(scopes, counts, strict=True):
        want |= expected_keep({n: weights[n] for n in names}, count)
    got = cluster.keep()
    for name in weights:
        assert np.array_equal(got[name], want[name]), name
    assert pruned == sum(counts)
    assert hex_digest(digest) == expected_digest(want)
    return cluster


@settings(max_examples=150, deadline=None)
@given(data=st.data(), a=parameter(), b=parameter(12), ranks=st.integers(1, 5))
def test_any_weights_in_any_partitions(
    data: st.DataObject, a: Float32Array, b: Float32Array, ranks: int
) -> None:
    weights = {"a": a, "b": b}
    bounds = {
        name: [0, *sorted(data.draw(cuts(w.size, ranks))), w.size] for name, w in weights.items()
    }
    total = a.size + b.size
    count = data.draw(st.one_of(st.sampled_from([0, total]), st.integers(0, total)))
    cluster = check(weights, bounds, [["a", "b"]], [count])
    # The count of live weights, and then whether all are finite or the search.
    assert cluster.wire.rounds in (range(4, 11) if count else (2,))
    assert cluster.wire.bytes <= VALUE_BYTES + TIE_BYTES


@pytest.fixture
def tiny_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets from a handful of weights, so that many miss, for scopes of any size."""
    monkeypatch.setattr(threshold, "BRACKET_FROM", 1)
    monkeypatch.setattr(threshold, "SAMPLE_SIZE", 20)
    monkeypatch.setattr(threshold, "SAMPLE_MARGIN", 0.5)
    monkeypatch.setattr(threshold, "_WIDEST", 0.5)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), a=parameter(), b=parameter(80), ranks=st.integers(1, 5))
def test_a_bracket_never_changes_the_answer(
    data: st.DataObject, tiny_brackets: None, a: Float32Array, b: Float32Array, ranks: int
) -> None:
    weights = {"a": a, "b": b}
    bounds = {
        name: [0, *sorted(data.draw(cuts(w.size, ranks))), w.size] for name, w in weights.items()
    }
    counts = [data.draw(st.integers(0, w.size)) for w in (a, b)]
    check(weights, bounds, [["a"], ["b"]], counts)
    check(weights, bounds, [["a", "b"]], [sum(counts)])


def test_brackets_that_hit_and_that_miss(tiny_brackets: None) -> None:
    """Both happen here, which the wire shows: a hit reads few bits of few keys."""
    rng = np.random.default_rng(21)
    hits, trials = 0, 0
    for seed in range(12):
        weights = {"a": rng.normal(0, 0.02, 400 + seed).astype(np.float32)}
        bounds = {"a": split_randomly(400 + seed, 4, rng)}
        for count in (40, 200, 390):
            cluster = check(weights, bounds, [["a"]], [count])
            hits += cluster.wire.bytes < 50_000
            trials += 1
    assert 0 < hits < trials


def test_a_large_scope_is_bracketed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real sizes: one pass, few of the keys, and less on the wire than in the bound."""
    found: list[tuple[int, int]] = []  # keys collected, live weights of the rank
    original = HostWeights.find_inside

    def counted(self: HostWeights, low: int, high: int) -> HostInside:
        inside = original(self, low, high)
        found.append((inside.count, self.count))
        return inside

    monkeypatch.setattr(HostWeights, "find_inside", counted)
    monkeypatch.setattr(host._LiveBits, "__iter__", missed)
    weights = {"a": tied_weights(population.CHUNK * 20 + 77, 22)}
    numel = weights["a"].size
    assert numel > threshold.BRACKET_FROM
    for ranks, share in ((1, 0.9), (5, 0.31)):
        bounds = {"a": split_randomly(numel, ranks, np.random.default_rng(ranks))}
        cluster = check(weights, bounds, [["a"]], [int(share * numel)])
        assert cluster.wire.bytes < VALUE_BYTES + 20 * 1024 + 64 + TIE_BYTES
    keys, live = (sum(column) for column in zip(*found, strict=True))
    assert 0 < keys < 0.05 * live, keys / live


def missed(_: object) -> None:
    raise AssertionError("the bracket missed: everything is read")


def test_columns_of_different_sizes_are_sampled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stride of 16 through rows of 1,024 would see 64 of the columns, and miss."""
    monkeypatch.setattr(host._LiveBits, "__iter__", missed)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        weights = rng.normal(0, 0.02, (4096, 1024)) * np.exp(0.3 * rng.normal(0, 1, 1024))
        cluster = Cluster({"a": weights.astype(np.float32).ravel()}, {"a": [0, weights.size]})
        cluster.select([["a"]], [int(0.9 * weights.size)])


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_threads_prune_the_same(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None], pattern: str
) -> None:
    """Small pieces, many fragments: a rank's own threads against one."""
    monkeypatch.setattr(population, "CHUNK", 64)
    rng = np.random.default_rng(5)
    weights = {f"w{i}": torch.from_numpy(tied_weights(64 * (i + 3), i)) for i in range(9)}
    shapes = {name: (w.numel() // 16, 16) for name, w in weights.items()}
    name = PatternName.parse(pattern)
    numel = sum(w.numel() for w in weights.values())
    scopes = [Scope(tuple(weights), numel, 0.0, name.unit_numel)]
    wanted = [int(rng.integers(numel // 4, numel // 3)) // name.unit_numel * name.unit_numel]
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        masters = {}
        for slot, (key, w) in enumerate(weights.items()):
            fragment = Fragment(key, 0, w.numel(), slot, 0, 0, w.numel())
            masters[FragmentMask(fragment, torch.device("cpu"))] = w
        found = update_masks(
            name, masters, shapes, scopes, wanted, rank=0, ranks=1, all_reduce=lambda x: x
        )
        results.append((found, [mask.keep.tolist() for mask in masters]))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_non_finite_weights_are_seen_in_a_bracketed_scope(
    tiny_brackets: None, poison: float
) -> None:
    for at in (0, 333, 799):
        weights = {"a": np.random.default_rng(23).normal(0, 1, 800).astype(np.float32)}
        weights["a"][at] = poison
        with pytest.raises(NonFiniteWeights, match="infinite or NaN"):
            Cluster(weights, {"a": [0, 100, 500, 800]}).select([["a"]], [300])


def cuts(numel: int, ranks: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, numel), min_size=ranks - 1, max_size=ranks - 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tensors=st.lists(parameter(20), min_size=1, max_size=4))
def test_per_tensor_scopes_each_have_their_own_cut(
    data: st.DataObject, tensors: list[Float32Array]
) -> None:
    weights = {f"t{i}": w for i, w in enumerate(tensors)}
    bounds = {n: [0, data.draw(st.integers(0, w.size)), w.size] for n, w in weights.items()}
    counts = [data.draw(st.integers(0, w.size)) for w in tensors]
    cluster = check(weights, bounds, [[name] for name in weights], counts)
    assert cluster.wire.bytes <= len(tensors) * (VALUE_BYTES + TIE_BYTES)


def tied_weights(numel: int, seed: int) -> Float32Array:
    """Normal weights, an eighth of them on a coarse grid with many ties, zeros of both signs."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.02, numel).astype(np.float32)
    coarse = rng.random(numel) < 0.125
    w[coarse] = (np.round(w[coarse] * 100) / 100).astype(np.float32)
    return w


def test_any_number_of_ranks_gives_the_same_masks() -> None:
    weights = {"a": tied_weights(7001, 1), "b": tied_weights(1, 2), "c": tied_weights(2500, 3)}
    rng = np.random.default_rng(4)
    for ranks in (1, 7, 64, 512):
        bounds = {name: split_randomly(w.size, ranks, rng) for name, w in weights.items()}
        # Inside the zeros, inside the ties at 0.01, between ties, and all but one.
        for count in (40, 3600, 6000, 9501)[:: 1 if ranks < 512 else 2]:
            wire = check(weights, bounds, [["a", "b", "c"]], [count]).wire
            assert wire.bytes <= VALUE_BYTES + TIE_BYTES, "whatever the number of ranks"
        check(weights, bounds, [["a"], ["b"], ["c"]], [3000, 1, 20])


def test_4096_ranks() -> None:
    weights = {"a": tied_weights(3000, 5)}
    bounds = {"a": split_randomly(3000, 4096, np.random.default_rng(6))}
    assert sum(a == b for a, b in zip(bounds["a"], bounds["a"][1:], strict=False)) > 1000
    # Inside the ties at 0.01, which a digit or two of their hashes tell apart.
    wire = check(weights, bounds, [["a"]], [1150]).wire
    assert 4 < wire.rounds < 10 and wire.bytes <= VALUE_BYTES + TIE_BYTES


def test_pieces_of_work_do_not_change_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is shorter than a partition and does not divide it: as for a large partition."""
    weights = {"a": tied_weights(1000, 7)}
    monkeypatch.setattr(population, "CHUNK", 7)
    for count in (40, 500):
        check(weights, {"a": [0, 333, 1000]}, [["a"]], [count])


@pytest.mark.parametrize(
    "numel", [population.CHUNK - 1, population.CHUNK, 2 * population.CHUNK + 5]
)
def test_partitions_longer_than_a_chunk(numel: int) -> None:
    weights = {"a": tied_weights(numel, 8)}
    check(weights, {"a": [0, numel]}, [["a"]], [int(0.9 * numel)])


def test_updates_add_up() -> None:
    """Pruned weights stay out of later counts, live zeros do not take their place."""
    weights = {"a": tied_weights(900, 9), "b": tied_weights(400, 10)}
    rng = np.random.default_rng(11)
    cluster = Cluster(weights, {n: split_randomly(w.size, 9, rng) for n, w in weights.items()})
    live = {name: np.ones(w.size, bool) for name, w in weights.items()}
    moved = {name: w.copy() for name, w in weights.items()}
    for count in (300, 0, 1, 700):
        cluster.prune([["a", "b"]], [count])
        live = expected_keep(moved, count, live=live)
        assert all(np.array_equal(cluster.keep()[n], live[n]) for n in weights)
        # A step later: pruned weights are +0.0, and some live ones have become exactly 0 too.
        for name, w in moved.items():
            w[rng.random(w.size) < 0.1] = 0.0
            w *= np.where(live[name], np.float32(1.1), np.float32(0.0))
            for rank, masters in enumerate(cluster.masters):
                if name in masters:
                    start, stop = cluster.bounds[name][rank : rank + 2]
                    masters[name].copy_(torch.from_numpy(w[start:stop]))


def test_a_pending_weight_never_counts() -> None:
    """Pruned by the mask, not yet zero, even infinite: another weight is to be taken."""
    weights = {"a": np.array([0.1, float("inf"), 0.3, 0.05, float("nan"), 0.2], np.float32)}
    cluster = Cluster(weights, {"a": [0, 2, 6]})
    for rank, pruned in ((0, 1), (1, 1), (1, 2)):  # positions 1, 3 and 4
        cluster.masks[rank]["a"].keep[pruned] = 0
    cluster.prune([["a"]], [2])
    assert cluster.keep()["a"].tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("poison", [float("inf"), float("-inf"), float("nan"), -float("nan")])
@pytest.mark.parametrize("count", [0, 3])
def test_non_finite_weights_are_refused_by_all(poison: float, count: int) -> None:
    """Only one rank holds it, in one scope, even if nothing of that scope is to be pruned."""
    weights = {"a": tied_weights(50, 12), "b": tied_weights(40, 13)}
    for at in (0, 39):
        weights["b"][at] = poison
        bounds = {"a": [0, 20, 50, 50], "b": [0, 1, 39, 40]}
        for scopes, counts in (([["a", "b"]], [count]), ([["a"], ["b"]], [count, 0])):
            cluster = Cluster(weights, bounds)
            with pytest.raises(NonFiniteWeights, match="infinite or NaN"):
                cluster.select(scopes, counts)
            assert cluster.wire.rounds == 2
        weights["b"][at] = 0.5


def test_the_largest_finite_weight_is_not_refused() -> None:
    weights = {"a": np.array([LARGEST, -LARGEST, 1.0], np.float32)}
    check(weights, {"a": [0, 3]}, [["a"]], [2])


def test_the_wire_without_ties_and_with() -> None:
    rng = np.random.default_rng(14)
    distinct = rng.permutation(np.arange(1, 2001)).astype(np.float32)
    grid = np.ones(2000, np.float32)
    for ranks in (1, 40):
        bounds = {"a": split_randomly(2000, ranks, rng)}
        without = check({"a": distinct}, bounds, [["a"]], [777])
        assert (without.wire.rounds, without.wire.bytes) == (4, VALUE_BYTES)
        # One digit tells 2,000 ties apart, or a second one for those that share the first.
        tied = check({"a": grid}, bounds, [["a"]], [777])
        assert tied.wire.rounds in (5, 6)
        assert tied.wire.bytes == VALUE_BYTES + (tied.wire.rounds - 4) * 16 * 1024
    # All of the ties are pruned: nothing is to be told apart.
    whole = check({"a": grid}, {"a": [0, 5, 2000]}, [["a"]], [2000])
    assert whole.wire.rounds == 4
    # Only tied scopes pay for the ties.
    both = check(
        {"a": distinct, "b": grid}, {n: [0, 9, 2000] for n in "ab"}, [["a"], ["b"]], [5, 5]
    )
    assert both.wire.bytes == 2 * VALUE_BYTES + (both.wire.rounds - 4) * 16 * 1024


def tied_with(hashes: list[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Cut, int]:
    """The cut that prunes one of weights of equal magnitude, and how many rounds it took."""
    monkeypatch.setattr(Population, "hash_positions", lambda _, at: torch.tensor(hashes)[at])
    weights = HostWeights([Population(torch.ones(len(hashes)), None, 0, 0)])
    sent = []

    def all_reduce(counts: torch.Tensor) -> torch.Tensor:
        sent.append(counts)
        return counts

    (cut,) = run(select([weights], [1], [len(hashes)]), all_reduce)
    return cut, len(sent)


def test_hashes_are_read_as_far_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tie` orders as unsigned numbers; of those that share the digits read, it is the last."""
    cut, rounds = tied_with([-1, 4, 6 << 32], monkeypatch)
    assert rounds == 3 + 3 and cut.ties == 3
    assert cut.tie is not None and 4 - 2**63 <= cut.tie < (6 << 32) - 2**63
    cut, rounds = tied_with([5, 4, 6 << 32], monkeypatch)
    assert rounds == 3 + 6 and cut.tie == 4 - 2**63
    with pytest.raises(RuntimeError, match="share a 64-bit position hash"):
        tied_with([4, 4, 6 << 32], monkeypatch)


def test_a_cut_tells_its_threshold_and_ties() -> None:
    weights = {"a": np.array([0.5, -0.25, 0.25, 0.25, 2.0, -0.0], np.float32)}
    bounds = {"a": [0, 3, 6]}
    (cut,) = Cluster(weights, bounds).select([["a"]], [3])
    assert (cut.threshold, cut.ties) == (0.25, 3)
    # Of the ties at positions 1, 2 and 3 the two with the smallest hashes go.
    first_two = sorted([1, 2, 3], key=lambda i: int(position_hashes("a", 6)[i]))[:2]
    cluster = check(weights, bounds, [["a"]], [3])
    assert set(np.flatnonzero(~cluster.keep()["a"])) == {5, *first_two}
    (cut,) = Cluster(weights, bounds).select([["a"]], [4])
    assert (cut.threshold, cut.tie, cut.ties) == (0.25, None, 0)
    (cut,) = Cluster(weights, bounds).select([["a"]], [0])
    assert cut == Cut(-1) and cut.threshold == 0.0


def test_run_drives_a_selection() -> None:
    weights = torch.tensor([3.0, -1.0, 2.0])
    weights_of_a = Population(weights, None, name_hash("a"), 0)
    sent = []

    def all_reduce(counts: torch.Tensor) -> torch.Tensor:
        sent.append(counts)
        return counts

    (cut,) = run(select([HostWeights([weights_of_a])], [2], [3]), all_reduce)
    assert cut.threshold == 2.0 and len(sent) == 3
    assert all(counts.dtype == torch.int64 for counts in sent)
    assert [int(counts.sum()) for counts in sent][0] == 3
