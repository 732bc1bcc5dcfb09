"""Gradients, their norm and the masters against plain torch, at every stage."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from distributed.partition_check import check_partition
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig
from tests.multiprocess import pool
from tests.multiprocess.toy import (
    PRUNABLE,
    Toy,
    backward,
    batch,
    gather_masters,
    initial_state,
    toy_engine,
)

CLIP = 0.05
# Reduction order differs from one process with one batch: measured 1e-7 relative, fp32 rounding.
FP32_BOUND = 2e-6


def reference_gradients(step: int) -> dict[str, torch.Tensor]:
    """Plain torch, one process, the whole batch."""
    module = Toy()
    x, y = batch(step)
    module(x=x, y=y, divisor=float(y.numel())).backward()
    return {name: p.grad.view(-1) for name, p in module.named_parameters() if p.grad is not None}


def sgd_gradient(setup: dict[str, Any], accumulation: int) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient that the optimizer saw: exp_avg = (1 - beta1) * grad after one step."""
    engine = toy_engine(**setup, accumulation=accumulation, max_grad_norm=0.0)
    backward(engine, 0, accumulation=accumulation)
    assert engine.step(0.0)
    moments = {f: engine.partition.moments(f)["exp_avg"] / 0.1 for f in engine.partition.fragments}
    from tests.multiprocess.toy import gather

    return gather(engine, moments), engine.grad_norm()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_equal_plain_torch(world_size: int) -> None:
    want = reference_gradients(0)
    norm = torch.cat(list(want.values())).norm().item()
    for stage in (0, 1, 2, 3):
        for accumulation in (1, 2, 4):
            setup = {"stage": stage, "precision": "fp32"}
            got, got_norm = pool.run(world_size, sgd_gradient, setup, accumulation)[0]
            where = f"stage {stage}, accumulation {accumulation}"
            assert got_norm == pytest.approx(norm, rel=FP32_BOUND), where
            for name, grad in want.items():
                error = (got[name].float() - grad).norm() / norm
                assert error < FP32_BOUND, (where, name, error)


def norm_with_masks(setup: dict[str, Any]) -> tuple[float, float, float]:
    """(norm DeepSpeed clips with, norm of the unmasked part by hand, largest pruned moment)."""
    engine = toy_engine(**setup, max_grad_norm=CLIP)
    config = SparsityConfig(schedule="one_shot", final_sparsity=0.5, prune_start_step=0)
    optimizer = engine.deepspeed_engine.basic_optimizer
    sparsity = SparsityController(config, engine.partition, prunable=PRUNABLE, optimizer=optimizer)
    sparsity.update(0)
    backward(engine, 0)
    sparsity.mask_gradients()
    assert engine.step(0.0)
    from tests.multiprocess.toy import gather

    keep = gather(engine, {f: m.keep != 0 for f, m in sparsity._masks.items()})
    want = reference_gradients(0)
    kept = [g[keep[n].bool()] if n in PRUNABLE else g for n, g in want.items()]
    moments = gather(
        engine, {f: engine.partition.moments(f)["exp_avg"] for f in engine.partition.fragments}
    )
    leaked = max(
        float(moments[n][~keep[n].bool()].abs().max()) for n in PRUNABLE if (keep[n] == 0).any()
    )
    return engine.grad_norm(), torch.cat(kept).norm().item(), leaked


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_pruned_gradients_are_out_of_norm_and_moments(world_size: int) -> None:
    for stage in (0, 1, 2, 3):
        ranks = pool.run(world_size, norm_with_masks, {"stage": stage, "precision": "fp32"})
        for got, want, leaked in ranks:
            assert got == pytest.approx(want, rel=FP32_BOUND), stage
            assert leaked == 0.0


def test_offload_keeps_moments_clean_and_says_that_the_norm_is_not() -> None:
    setup = {"stage": 2, "precision": "fp32", "offload_optimizer": True}
    for got, want, leaked in pool.run(2, norm_with_masks, setup):
        assert leaked == 0.0
        assert got > want * 1.01


def fresh_masters(setup: dict[str, Any]) -> dict[str, torch.Tensor]:
    engine = toy_engine(**setup)
    check_partition(engine.partition)
    assert engine.partition.optimizer_steps() == 0
    return gather_masters(engine)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_masters_start_from_the_fp32_source(world_size: int) -> None:
    want = initial_state()
    for stage in (0, 1, 2, 3):
        got = pool.run(world_size, fresh_masters, {"stage": stage, "precision": "bf16"})[0]
        for name, value in want.items():
            assert torch.equal(got[name], value), (stage, name)


def poisoned_step(setup: dict[str, Any], poisoned_rank: int) -> tuple[bool, bool, bool]:
    """A non-finite loss on one rank: the update is skipped on all, and new masks stay pending."""
    engine = toy_engine(**setup)
    config = SparsityConfig(schedule="one_shot", final_sparsity=0.5, prune_start_step=0)
    sparsity = SparsityController(
        config,
        engine.partition,
        prunable=PRUNABLE,
        optimizer=engine.deepspeed_engine.basic_optimizer,
    )
    sparsity.update(0)
    before = gather_masters(engine)
    x, y = batch(0)
    if engine.partition.rank == poisoned_rank:
        x[0, 0] = float("inf")
        y[0, 0] = float("nan")
    engine.backward(engine.forward(x=x, y=y, divisor=1.0))
    sparsity.mask_gradients()
    applied = engine.step(1e-2)
    sparsity.after_step(applied)
    after = gather_masters(engine)
    untouched = all(torch.equal(before[n], after[n]) for n in before)
    pending = sparsity.state.pending
    # The next, healthy step applies the update and the pending mask.
    backward(engine, 1)
    sparsity.mask_gradients()
    healthy = engine.step(1e-2)
    sparsity.after_step(healthy)
    assert healthy and not sparsity.state.pending and sparsity.find_violation() is None
    return applied, untouched, pending


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_non_finite_step_is_skipped_by_all(world_size: int) -> None:
    for stage in (0, 1, 2, 3):
        for precision in ("fp32", "bf16"):
            setup = {"stage": stage, "precision": precision}
            for result in pool.run(world_size, poisoned_step, setup, world_size - 1):
                assert result == (False, True, True), setup


def damaged_check(stage: int, damage: str) -> str:
    """One rank's partition is wrong; what each rank says of it."""
    engine = toy_engine(stage=stage, precision="bf16")
    partition = engine.partition
    check_partition(partition)
    if partition.rank == 1:
        *rest, last = sorted(partition.fragments, key=lambda f: (f.slot, f.offset))
        if damage == "missing":
            partition.fragments = tuple(rest)
        elif damage == "overlapping":
            partition.fragments = (*rest, last, last)
        elif damage == "beyond":
            end = partition.masters()[last.slot].numel()
            partition.fragments = (*rest, replace(last, offset=end))
        elif damage == "stale":
            partition.master(last).add_(1.0)
    try:
        check_partition(partition)
    except RuntimeError as error:
        return str(error)
    return "nothing is wrong"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_wrong_partition_on_one_rank_is_seen_by_all(stage: int) -> None:
    words = {
        "missing": "do not tile",
        "overlapping": "not in its place",
        "beyond": "not in its place",
        "stale": "is not its fp32 master",
    }
    for damage, said in words.items():
        ranks = pool.run(2, damaged_check, stage, damage)
        assert said in ranks[0], (damage, ranks)
        assert ranks[0] == ranks[1]
