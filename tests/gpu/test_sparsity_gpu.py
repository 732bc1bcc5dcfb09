"""Threshold, masks and digest of weights on a GPU: the same as numpy's, and as on the host."""

import numpy as np
import pytest
import torch

from distributed.hashing import hex_digest
from sparsity.selection import device, threshold
from sparsity.selection.masks import apply_keep
from tests.unit.sparsity.oracle import expected_digest, expected_keep
from tests.unit.sparsity.simulation import Cluster, split_randomly

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SIZES = {"large": threshold.BRACKET_FROM + 12_345, "small": 1_001}


def test_the_kernels_run() -> None:
    """Otherwise the host would do their work, and the tests below would say nothing of them."""
    assert device.has_kernels(torch.device("cuda"))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_masks_equal_the_oracle(
    monkeypatch: pytest.MonkeyPatch, ranks: int, ties: bool, kernels: bool
) -> None:
    monkeypatch.setattr(device, "has_kernels", lambda _: kernels)
    rng = np.random.default_rng(ranks)
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in SIZES.items()}
    if ties:
        weights = {name: np.round(values, 1) for name, values in weights.items()}
    bounds = {name: split_randomly(size, ranks, rng) for name, size in SIZES.items()}
    scopes = [["large"], ["small"]]
    first, second = ([int(SIZES[n[0]] * share) for n in scopes] for share in (0.5, 0.9))
    cluster = Cluster(weights, bounds, device="cuda")
    cluster.prune(scopes, first)
    cluster.prune(scopes, [b - a for a, b in zip(first, second, strict=True)])
    want = {}
    for (name,), at_first, at_last in zip(scopes, first, second, strict=True):
        live = expected_keep({name: weights[name]}, at_first)
        want |= expected_keep({name: weights[name]}, at_last - at_first, live=live)
    got = cluster.keep()
    assert all(np.array_equal(got[name], want[name]) for name in SIZES)
    digests = [mask.owned_digest()[1] for masks in cluster.masks for mask in masks.values()]
    wrapped = (sum(digests) + (1 << 63)) % (1 << 64) - (1 << 63)
    assert hex_digest(wrapped) == expected_digest(want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pruned_weights_become_zero_and_no_other_changes(dtype: torch.dtype) -> None:
    values = torch.randn(10_001, device="cuda").to(dtype)
    values[::7] = torch.nan
    keep = torch.where(torch.rand(10_001, device="cuda") < 0.9, 0, -1).to(torch.int8)
    before = values.clone()
    apply_keep(values, keep)
    pruned = keep == 0
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    assert not values[pruned].view(integers).any()
    assert torch.equal(values[~pruned].view(integers), before[~pruned].view(integers))
