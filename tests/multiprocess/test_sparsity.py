"""Masks against numpy on gathered masters, at every stage, precision and world size."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from distributed.hashing import hex_digest, name_hash, position_hash, unsigned_order
from distributed.partition_check import check_partition
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig, compute_pruned_count, compute_target
from tests.multiprocess import pool
from tests.multiprocess.toy import (
    PRUNABLE,
    Toy,
    backward,
    batch,
    gather,
    gather_masters,
    toy_engine,
    train_step,
)

CUBIC = SparsityConfig(
    initial_sparsity=0.3,
    final_sparsity=0.9,
    prune_start_step=1,
    prune_end_step=4,
    prune_interval_steps=2,
)
SETUPS = [
    {"stage": stage, "precision": precision}
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
] + [
    {"stage": 1, "precision": "bf16", "grad_dtype": "fp32"},
    {"stage": 1, "precision": "fp32", "advanced": {"round_robin_gradients": True}},
    {"stage": 2, "precision": "bf16", "offload_optimizer": True},
    {"stage": 3, "precision": "bf16", "advanced": {"sub_group_size": 300}},
    {"stage": 3, "precision": "bf16", "advanced": {"stage3_param_persistence_threshold": 100000}},
    {"stage": 3, "precision": "bf16", "offload_param": True, "offload_optimizer": True},
]
# Each option with the other precision, and at its other stages.
CROSSED = [
    {"stage": 1, "precision": "bf16", "advanced": {"round_robin_gradients": True}},
    {"stage": 2, "precision": "fp32", "advanced": {"round_robin_gradients": True}},
    {"stage": 2, "precision": "bf16", "advanced": {"round_robin_gradients": True}},
    {"stage": 1, "precision": "fp32", "offload_optimizer": True},
    {"stage": 1, "precision": "bf16", "offload_optimizer": True},
    {"stage": 2, "precision": "fp32", "offload_optimizer": True},
    {"stage": 3, "precision": "fp32", "offload_optimizer": True},
    {"stage": 3, "precision": "bf16", "offload_optimizer": True},
    {"stage": 3, "precision": "fp32", "advanced": {"sub_group_size": 300}},
    {"stage": 3, "precision": "fp32", "advanced": {"stage3_param_persistence_threshold": 100000}},
    {"stage": 3, "precision": "fp32", "offload_param": True, "offload_optimizer": True},
    {"stage": 3, "precision": "bf16", "offload_param": True},
]


def attach(engine: Any, config: SparsityConfig) -> SparsityController:
    return SparsityController(
        config,
        engine.partition,
        prunable=PRUNABLE,
        optimizer=engine.deepspeed_engine.basic_optimizer,
    )


def oracle_keep(
    masters: dict[str, torch.Tensor], keep: dict[str, np.ndarray], count: int
) -> dict[str, np.ndarray]:
    """Prune until `count` weights are pruned: numpy sorts live weights by (magnitude, hash)."""
    names, offsets = list(PRUNABLE), [0]
    for name in names:
        offsets.append(offsets[-1] + masters[name].numel())
    magnitude = np.concatenate([masters[n].abs().numpy() for n in names])
    hashes = np.concatenate(
        [
            unsigned_order(position_hash(name_hash(n), torch.arange(masters[n].numel()))).numpy()
            for n in names
        ]
    )
    live = np.concatenate([keep[n] for n in names])
    more = count - int((~live).sum())
    if more > 0:
        candidates = np.flatnonzero(live)
        kth = np.partition(magnitude[candidates], more - 1)[more - 1]
        order = candidates[np.lexsort((hashes[candidates], magnitude[candidates]))]
        assert magnitude[order[more - 1]] == kth
        live[order[:more]] = False
    return {n: live[a:b] for n, a, b in zip(names, offsets, offsets[1:], strict=False)}


def oracle_digest(keep: dict[str, np.ndarray]) -> str:
    total = 0
    for name, k in keep.items():
        total += int(position_hash(name_hash(name), torch.from_numpy(np.flatnonzero(~k))).sum())
    return hex_digest(total)


def check_training(setup: dict[str, Any]) -> list[str]:
    """Seven steps; every update against the oracle, every copy of every weight after every step."""
    engine = toy_engine(**setup)
    check_partition(engine.partition)
    sparsity = attach(engine, CUBIC)
    keep = {
        name: np.ones(n, bool) for name, n in engine.partition.numels.items() if name in PRUNABLE
    }
    total = sum(k.size for k in keep.values())
    digests = []
    for step in range(7):
        if sparsity.is_due(step):
            masters = gather_masters(engine)
            sparsity.update(step)
            count = compute_pruned_count(compute_target(CUBIC, step), total)
            keep = oracle_keep(masters, keep, count)
            masks = gather(engine, {f: m.keep != 0 for f, m in sparsity._masks.items()})
            for name in PRUNABLE:
                assert np.array_equal(masks[name].numpy().astype(bool), keep[name]), (step, name)
            assert sparsity.state.digest == oracle_digest(keep)
            assert sparsity.pruned_numel == count
            digests.append(sparsity.state.digest)
        assert train_step(engine, step)
        sparsity.after_step(True)
        check_partition(engine.partition)
        assert sparsity.find_violation() is None
        masters = gather_masters(engine)
        for name in PRUNABLE if digests else ():
            assert not masters[name].numpy()[~keep[name]].any()
            assert masters[name].numpy()[keep[name]].all()
    assert [len(digests), sparsity.pruned_numel] == [
        3,
        compute_pruned_count(compute_target(CUBIC, 4), total),
    ]
    return digests


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_masks_equal_the_oracle_everywhere(world_size: int) -> None:
    for setup in SETUPS:
        ranks = pool.run(world_size, check_training, setup)
        assert all(digests == ranks[0] for digests in ranks), setup


def digests_of_two_updates(setup: dict[str, Any]) -> tuple[str, str]:
    """With accumulated and skipped steps between them that leave live weights as they are."""
    engine = toy_engine(**setup, accumulation=2)
    config = SparsityConfig(
        initial_sparsity=0.5, final_sparsity=0.7, prune_end_step=2, prune_interval_steps=2
    )
    sparsity = attach(engine, config)
    sparsity.update(0)
    assert sparsity.state.ties > 1, "the toy's weights are meant to tie"
    first = sparsity.state.digest
    for step, poison in enumerate((float("nan"), 1.0)):
        x, y = batch(step, rows=4)
        for xs, ys in zip(x.split(2), y.split(2), strict=True):
            engine.backward(engine.forward(x=xs * poison, y=ys, divisor=float(y.numel())))
        sparsity.mask_gradients()
        applied = engine.step(0.0)
        assert applied == (poison == 1.0)
        sparsity.after_step(applied)
        assert sparsity.state.pending is not applied
    assert sparsity.find_violation() is None
    sparsity.update(2)
    return first, sparsity.state.digest


def test_one_digest_for_every_partitioning() -> None:
    digests = {
        both
        for world_size in (1, 2, 3)
        for setup in SETUPS + CROSSED
        for both in pool.run(world_size, digests_of_two_updates, setup)
    }
    assert len(digests) == 1
    ((first, second),) = digests
    assert first != second


def trained_hash(setup: dict[str, Any], sparse: bool) -> str:
    engine = toy_engine(**setup)
    if sparse:
        zero = SparsityConfig(final_sparsity=0.0, prune_end_step=3, prune_interval_steps=1)
        sparsity = attach(engine, zero)
    for step in range(4):
        if sparse and sparsity.is_due(step):
            sparsity.update(step)
        backward(engine, step)
        if sparse:
            sparsity.mask_gradients()
        engine.step(1e-2)
    masters = gather_masters(engine)
    return hashlib.sha256(b"".join(masters[n].numpy().tobytes() for n in masters)).hexdigest()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_sparsity_changes_no_bit(world_size: int, stage: int) -> None:
    setup = {"stage": stage, "precision": "bf16"}
    dense = pool.run(world_size, trained_hash, setup, False)
    assert pool.run(world_size, trained_hash, setup, True) == dense


def test_the_toy_has_awkward_sizes() -> None:
    sizes = {name: p.numel() for name, p in Toy().named_parameters() if name in PRUNABLE}
    assert any(n % 2 and n % 3 for n in sizes.values()) and min(sizes.values()) < 2
