"""DeepSpeed's engines on one GPU: pruning at every stage, with and without offload; collectives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from distributed.config import OptimizerConfig, ZeroConfig
from distributed.partition_check import check_partition
from distributed.world import (
    AgreedFlag,
    Topology,
    all_reduce_max,
    all_reduce_sum,
    broadcast_json,
    ensure_process_group,
)
from distributed.zero import Engine, build_engine
from sparsity.controller import SparsityController
from sparsity.schedule import compute_pruned_count, compute_target
from tests.multiprocess.test_sparsity import CUBIC, attach, oracle_digest, oracle_keep
from tests.multiprocess.toy import NO_DECAY, PRUNABLE, Toy, batch, named

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

DEVICE = torch.device("cuda", 0)
SETUPS = [
    *({"stage": stage, "precision": p} for stage in (0, 1, 2, 3) for p in ("fp32", "bf16")),
    *({"stage": stage, "precision": "bf16", "offload_optimizer": True} for stage in (1, 2, 3)),
    {"stage": 3, "precision": "bf16", "offload_param": True},
    {"stage": 3, "precision": "bf16", "offload_param": True, "offload_optimizer": True},
]


@pytest.fixture(scope="module", autouse=True)
def _group_of_one() -> Iterator[None]:
    ensure_process_group(Topology(0, 1, 0, DEVICE))
    yield
    dist.destroy_process_group()


def engine_on_gpu(*, stage: int, precision: Any, **offload: bool) -> Engine:
    module = Toy()
    advanced = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return build_engine(
        module,
        named_parameters=named(module),
        no_decay=NO_DECAY,
        optimizer=OptimizerConfig(precision=precision, adam_eps=1e-8, micro_batch_rows=1),
        zero=ZeroConfig(stage=stage, advanced=advanced, **offload),  # type: ignore[arg-type]
        accumulation_steps=1,
        device=DEVICE,
    )


def backward(engine: Engine, step: int, *, scale: float = 1.0) -> None:
    x, y = (tensor.to(DEVICE) for tensor in batch(step))
    engine.backward(engine.forward(x=x * scale, y=y, divisor=float(y.numel())))


def masks_of(sparsity: SparsityController, numels: dict[str, int]) -> dict[str, np.ndarray]:
    keep = {name: np.zeros(numels[name], bool) for name in PRUNABLE}
    for f, mask in sparsity._masks.items():
        keep[f.name][f.start : f.start + f.length] = mask.keep.cpu().numpy() != 0
    return keep


@pytest.mark.parametrize("setup", SETUPS, ids=lambda s: "-".join(map(str, s.values())))
def test_training_prunes_as_numpy_says(setup: dict[str, Any]) -> None:
    engine = engine_on_gpu(**setup)
    partition = engine.partition
    check_partition(partition)
    sparsity = attach(engine, CUBIC)
    keep = {name: np.ones(partition.numels[name], bool) for name in PRUNABLE}
    total = sum(k.size for k in keep.values())
    for step in range(6):
        if sparsity.is_due(step):
            masters = {name: torch.empty(partition.numels[name]) for name in PRUNABLE}
            for f in partition.fragments:
                if f.name in masters:
                    part = partition.master(f).detach().cpu().float()
                    masters[f.name][f.start : f.start + f.length] = part
            sparsity.update(step)
            keep = oracle_keep(
                masters, keep, compute_pruned_count(compute_target(CUBIC, step), total)
            )
            found = masks_of(sparsity, partition.numels)
            assert all(np.array_equal(found[name], keep[name]) for name in PRUNABLE), step
            assert sparsity.state.digest == oracle_digest(keep)
        backward(engine, step)
        sparsity.mask_gradients()
        assert engine.step(1e-2)
        sparsity.after_step(True)
        check_partition(partition)
        assert sparsity.find_violation() is None
    packed = sparsity.packed_masks()
    assert all(mask.device.type == "cpu" for mask in packed.values())


@pytest.mark.parametrize("setup", SETUPS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_gradient_that_is_not_finite_is_skipped(setup: dict[str, Any]) -> None:
    engine = engine_on_gpu(**setup)
    partition = engine.partition
    before = {f: partition.master(f).detach().clone() for f in partition.fragments}
    backward(engine, 0, scale=float("nan"))
    assert not engine.step(1e-2)
    assert all(torch.equal(partition.master(f).detach(), value) for f, value in before.items())
    backward(engine, 1)
    assert engine.step(1e-2)


def test_collectives() -> None:
    counts = torch.arange(5)
    for on in (counts, counts.to(DEVICE)):
        assert all_reduce_sum(on).device == on.device
        assert torch.equal(all_reduce_sum(on).cpu(), counts)
        assert torch.equal(all_reduce_max(on).cpu(), counts)
    assert broadcast_json({"a": [1, None, "x"]}) == {"a": [1, None, "x"]}
    flag = AgreedFlag()
    assert [flag.agreed(raised) for raised in (True, False, False)] == [False, True, False]
