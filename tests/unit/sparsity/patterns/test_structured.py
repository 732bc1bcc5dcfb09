"""N:M and blocks over simulated ranks, against numpy on the whole weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.errors import BadInput
from distributed.hashing import hex_digest
from sparsity.patterns import stripes
from sparsity.patterns.name import PatternName
from sparsity.selection.threshold import MasksDoNotFit, NonFiniteWeights
from tests.unit.sparsity.oracle import blocks_oracle, expected_digest, n_of_m_oracle
from tests.unit.sparsity.simulation import AWKWARD, Cluster, Float32Array, split_randomly

Shapes = Mapping[str, tuple[int, int]]


def tied(shape: tuple[int, int], seed: int) -> Float32Array:
    """Weights on a coarse grid, so that groups and blocks tie; some larger by far, some -0.0."""
    rng = np.random.default_rng(seed)
    w = np.round(rng.normal(0, 1, shape) * 2) / 4
    w[rng.random(shape) < 0.05] *= 1000
    w[rng.random(shape) < 0.05] *= 2.0**-50
    return w.astype(np.float32).reshape(-1)


def check_updates(
    pattern: str, shapes: Shapes, bounds: Mapping[str, Sequence[int]], units: Sequence[int]
) -> Cluster:
    """Several updates, the weights moving between them; masks and digest against the oracle."""
    name = PatternName.parse(pattern)
    weights = {n: tied(shape, i) for i, (n, shape) in enumerate(shapes.items())}
    cluster = Cluster(weights, bounds, pattern=pattern, shapes=shapes)
    keep = {n: np.ones(w.size, bool) for n, w in weights.items()}
    rng, digest = np.random.default_rng(5), 0
    for count in units:
        if name.kind == "n_of_m":
            want = n_of_m_oracle(weights, keep, name.rows, name.columns, count)
        else:
            want = blocks_oracle(weights, shapes, keep, name.rows, name.columns, count)
        pruned, part = cluster.prune([list(shapes)], [count * name.unit_numel])
        digest += part
        got = cluster.keep()
        for n in shapes:
            assert np.array_equal(got[n], want[n]), n
        assert pruned == count * name.unit_numel
        assert hex_digest(digest) == expected_digest(want)
        keep = want
        for n, w in weights.items():
            w += np.round(rng.normal(0, 1, w.size) * 2).astype(np.float32) / 4
            w *= keep[n]
            for rank, masters in enumerate(cluster.masters):
                if n in masters:
                    start, stop = bounds[n][rank : rank + 2]
                    masters[n].numpy()[:] = w[start:stop]
    return cluster


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.integers(1, 6), pattern=st.sampled_from(["2:4", "1:4", "3:8"]))
def test_n_of_m_in_any_partitions(data: st.DataObject, ranks: int, pattern: str) -> None:
    shapes = {"a": (3, 16), "b": (5, 8)}
    name = PatternName.parse(pattern)
    room = sum(r * c for r, c in shapes.values()) * (name.columns - name.rows) // name.columns
    first = data.draw(st.integers(0, room))
    cluster = check_updates(pattern, shapes, any_bounds(data, shapes, ranks), [first, room - first])
    for n, keep in cluster.keep().items():
        assert (keep.reshape(-1, name.columns).sum(1) == name.rows).all(), n


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    ranks=st.integers(1, 5),
    values=st.lists(st.sampled_from(AWKWARD), min_size=32, max_size=32),
)
def test_n_of_m_of_awkward_weights(data: st.DataObject, ranks: int, values: list[float]) -> None:
    """Zeros of both signs, denormals, the smallest and the largest there are."""
    shapes = {"a": (4, 8)}
    weights = {"a": np.array(values, np.float32)}
    bounds = any_bounds(data, shapes, ranks)
    cluster = Cluster(weights, bounds, pattern="2:4", shapes=shapes)
    count = data.draw(st.integers(0, 16))
    cluster.prune([["a"]], [count])
    want = n_of_m_oracle(weights, {"a": np.ones(32, bool)}, 2, 4, count)
    assert np.array_equal(cluster.keep()["a"], want["a"])


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    ranks=st.integers(1, 6),
    pattern=st.sampled_from(["4x1", "1x4", "2x2", "6x8", "3x4"]),
)
def test_blocks_in_any_partitions(data: st.DataObject, ranks: int, pattern: str) -> None:
    shapes = {"a": (12, 8), "b": (24, 16)}
    blocks = sum(r * c for r, c in shapes.values()) // PatternName.parse(pattern).unit_numel
    first = data.draw(st.integers(0, blocks))
    second = data.draw(st.integers(0, blocks - first))
    check_updates(pattern, shapes, any_bounds(data, shapes, ranks), [first, second])


def any_bounds(data: st.DataObject, shapes: Shapes, ranks: int) -> dict[str, list[int]]:
    bounds = {}
    for name, (r, c) in shapes.items():
        cuts = st.lists(st.integers(0, r * c), min_size=ranks - 1, max_size=ranks - 1)
        bounds[name] = [0, *sorted(data.draw(cuts)), r * c]
    return bounds


@pytest.mark.parametrize("ranks", [64, 512])
@pytest.mark.parametrize("pattern", ["2:4", "8x4"])
def test_many_ranks(pattern: str, ranks: int) -> None:
    """Ranks that hold less than a unit: one unit then lies on many."""
    shapes = {"a": (16, 64), "b": (8, 40)}
    rng = np.random.default_rng(ranks)
    bounds = {n: split_randomly(r * c, ranks, rng) for n, (r, c) in shapes.items()}
    check_updates(pattern, shapes, bounds, [11, 5] if pattern == "8x4" else [300, 200])


@pytest.mark.parametrize("pattern", ["2:4", "4x4", "1x8"])
def test_pieces_of_work_do_not_change_the_masks(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(stripes, "CHUNK", 50)
    monkeypatch.setattr("sparsity.selection.population.CHUNK", 50)
    shapes = {"a": (24, 16), "b": (8, 16)}
    bounds = {n: split_randomly(r * c, 3, np.random.default_rng(1)) for n, (r, c) in shapes.items()}
    check_updates(pattern, shapes, bounds, [10, 4])


def test_one_rank_shares_nothing_and_a_boundary_costs_one_stripe() -> None:
    shapes = {"a": (8, 32)}
    for pattern, numbers in (("2:4", 4), ("4x1", 64), ("1x4", 2)):
        alone = check_updates(pattern, shapes, {"a": [0, 256]}, [7]).wire.bytes
        whole = check_updates(pattern, shapes, {"a": [0, 128, 256]}, [7]).wire.bytes
        assert whole == alone + 8, "the boundary lies between stripes: one more count"
        cut = check_updates(pattern, shapes, {"a": [0, 130, 256]}, [7]).wire.bytes
        # Each of two ranks lists the stripe (two numbers), and they add up its table.
        assert cut == whole + 2 * 2 * 8 + 8 * numbers


def test_block_scores_do_not_lose_small_weights_beside_large_ones() -> None:
    """An fp32 sum loses each 1 beside 2^24, and so depends on the order and on the partition."""
    w = np.zeros((2, 64), np.float32)
    w[:, 0] = 2.0**24
    w[0, 1:] = 1.0
    for bounds in ([0, 128], [0, 1, 128], [0, 1, 30, 70, 128]):
        weights = {"a": w.reshape(-1)}
        cluster = Cluster(weights, {"a": bounds}, pattern="1x64", shapes={"a": (2, 64)})
        cluster.prune([["a"]], [64])
        assert cluster.keep()["a"].tolist() == [True] * 64 + [False] * 64


@pytest.mark.parametrize("pattern", ["2:4", "4x1"])
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_non_finite_weights_are_refused_by_all(pattern: str, poison: float) -> None:
    for at in (0, 17, 63):
        w = tied((8, 8), 3)
        w[at] = poison
        cluster = Cluster({"a": w}, {"a": [0, 10, 30, 64]}, pattern=pattern, shapes={"a": (8, 8)})
        with pytest.raises(NonFiniteWeights):
            cluster.select([["a"]], [8])


@pytest.mark.parametrize(
    ("pattern", "pruned", "told"),
    [
        ("2:4", [8, 9, 10], "1 groups have lost more than their pattern prunes"),
        ("2:4", [3, 4, 5, 7], "1 groups"),  # one lies on two ranks
        ("2:4", [12, 13, 14, 15, 28, 29, 31], "2 groups"),
        ("4x1", [0], "1 blocks are pruned in part"),
        ("1x4", [4, 5, 12, 13, 14, 15], "1 blocks"),
    ],
)
def test_masks_of_another_pattern_are_refused(pattern: str, pruned: list[int], told: str) -> None:
    """Before a mask changes, and by all ranks."""
    shapes = {"a": (4, 8)}
    cluster = Cluster({"a": tied((4, 8), 4)}, {"a": [0, 6, 32]}, pattern=pattern, shapes=shapes)
    for at in pruned:
        rank = int(at >= 6)
        cluster.masks[rank]["a"].keep[at - 6 * rank] = 0
    with pytest.raises(MasksDoNotFit, match=f"{told}.*sparsity.pattern"):
        cluster.prune([["a"]], [8])
    assert (~cluster.keep()["a"]).sum() == len(pruned)


def test_masks_of_the_pattern_go_on() -> None:
    """Those that another tool made count too: two of each group, or whole blocks."""
    keep = np.ones((4, 8), bool)
    keep[:, ::4] = keep[:, 1::4] = False
    for pattern, more in (("2:4", 0), ("4x1", 4)):
        weights = {"a": tied((4, 8), 4)}
        cluster = Cluster(weights, {"a": [0, 6, 32]}, pattern=pattern, shapes={"a": (4, 8)})
        for rank, (start, stop) in enumerate(((0, 6), (6, 32))):
            mask = cluster.masks[rank]["a"]
            mask.load(torch.from_numpy(keep.reshape(-1)[start:stop]))
        assert cluster.prune([["a"]], [more])[0] == more


@pytest.mark.parametrize("text", ["2:2", "0:4", "4", "2:", "x4", "0x4", "1x1", "2:4:8", "4:128"])
def test_pattern_names_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="write unstructured, N:M"):
        PatternName.parse(text)


@pytest.mark.parametrize(
    ("text", "shape"), [("2:4", (8, 6)), ("4x1", (6, 8)), ("2x2", (8,)), ("2:4", (2, 2, 4))]
)
def test_shapes_that_do_not_divide_are_named(text: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"layer\.weight is"):
        PatternName.parse(text).check_shape("layer.weight", shape)
