"""Checkpoints: what is read back is what was there, on any world size and stage."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.checkpoint.manifest import MANIFEST, BadCheckpoint, seal
from distributed.checkpoint.reading import MASK, MASTER, Checkpoint, find_newest, list_steps
from distributed.checkpoint.retention import remove_old
from distributed.config import CheckpointConfig
from distributed.partition_check import check_partition
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig
from tests.checkpoints import save_checkpoint
from tests.multiprocess import pool
from tests.multiprocess.toy import (
    PRUNABLE,
    backward,
    gather,
    gather_masters,
    toy_engine,
)

CONFIG = SparsityConfig(final_sparsity=0.8, prune_end_step=4, prune_interval_steps=2)
Snapshot = dict[str, dict[str, torch.Tensor]]


def attach(engine: Any) -> SparsityController:
    optimizer = engine.deepspeed_engine.basic_optimizer
    return SparsityController(CONFIG, engine.partition, prunable=PRUNABLE, optimizer=optimizer)


def train(engine: Any, sparsity: SparsityController, first: int, last: int) -> None:
    for step in range(first, last):
        if sparsity.is_due(step):
            sparsity.update(step)
        backward(engine, step)
        sparsity.mask_gradients()
        sparsity.after_step(engine.step(1e-2))


def snapshot(engine: Any, sparsity: SparsityController) -> Snapshot:
    """Collective: whole masters, moments and masks."""
    partition = engine.partition
    whole = {MASTER: gather_masters(engine)}
    for kind in ("exp_avg", "exp_avg_sq"):
        values = {f: partition.moments(f)[kind] for f in partition.fragments}
        whole[kind] = gather(engine, values)
    whole[MASK] = gather(engine, {f: m.keep != 0 for f, m in sparsity._masks.items()})
    return whole


def equal(a: Snapshot, b: Snapshot) -> bool:
    return all(torch.equal(a[kind][name], b[kind][name]) for kind in a for name in a[kind])


def save(engine: Any, sparsity: SparsityController, folder: Path, step: int) -> None:
    save_checkpoint(
        folder,
        step=step,
        attempt="test",
        partition=engine.partition,
        packed_masks=sparsity.packed_masks(),
        state={"sparsity": asdict(sparsity.state)},
    )


def restore(setup: dict[str, Any], path: Path) -> tuple[Any, SparsityController]:
    checkpoint = Checkpoint(path)
    read = checkpoint.reader(MASTER)
    state = {name: read(name, 0, numel) for name, numel in checkpoint.numels.items()}
    engine = toy_engine(**setup, state=state)
    moments = {kind: checkpoint.reader(kind) for kind in ("exp_avg", "exp_avg_sq")}
    engine.partition.write_moments(moments, checkpoint.optimizer_steps)
    sparsity = attach(engine)
    saved = checkpoint.state["sparsity"]
    sparsity.load_masks(checkpoint.reader(MASK), expected_digest=saved["digest"])
    sparsity.load_state(saved)
    return engine, sparsity


def stop_and_go(setup: dict[str, Any], folder: Path) -> bool:
    """Six steps at once, and three with a checkpoint, then three from it: bit for bit."""
    engine = toy_engine(**setup)
    sparsity = attach(engine)
    train(engine, sparsity, 0, 3)
    save(engine, sparsity, folder, 3)
    train(engine, sparsity, 3, 6)
    uninterrupted = snapshot(engine, sparsity)
    resumed, resumed_sparsity = restore(setup, folder / "step-00000003")
    train(resumed, resumed_sparsity, 3, 6)
    same_digest = resumed_sparsity.state.digest == sparsity.state.digest
    return same_digest and equal(snapshot(resumed, resumed_sparsity), uninterrupted)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resume_is_bit_identical(world_size: int, tmp_path: Path) -> None:
    setups: list[dict[str, Any]] = [
        {"stage": stage, "precision": p} for stage in (0, 1, 2, 3) for p in ("fp32", "bf16")
    ]
    setups.append({"stage": 2, "precision": "bf16", "offload_optimizer": True})
    offloaded = {"offload_param": True, "offload_optimizer": True}
    setups.append({"stage": 3, "precision": "bf16", **offloaded})
    for number, setup in enumerate(setups):
        assert all(pool.run(world_size, stop_and_go, setup, tmp_path / str(number))), setup


def write_trained(setup: dict[str, Any], folder: Path) -> Snapshot:
    engine = toy_engine(**setup)
    sparsity = attach(engine)
    train(engine, sparsity, 0, 3)
    save(engine, sparsity, folder, 3)
    return snapshot(engine, sparsity)


def move(setup: dict[str, Any], path: Path, folder: Path) -> Snapshot:
    """Read on this world size and stage, and write again from it."""
    engine, sparsity = restore(setup, path)
    check_partition(engine.partition)
    save(engine, sparsity, folder, 3)
    return snapshot(engine, sparsity)


def test_state_survives_every_world_size_and_stage(tmp_path: Path) -> None:
    path = tmp_path / "0"
    want = pool.run(2, write_trained, {"stage": 2, "precision": "fp32"}, path)[0]
    chain = [(3, 0), (1, 3), (2, 1), (3, 2), (1, 0), (2, 3)]
    for at, (world_size, stage) in enumerate(chain, start=1):
        setup = {"stage": stage, "precision": "bf16"}
        folder = tmp_path / str(at)
        got = pool.run(world_size, move, setup, path / "step-00000003", folder)[0]
        assert equal(got, want), (world_size, stage)
        path = folder


@pytest.fixture
def written(tmp_path: Path) -> Path:
    pool.run(2, write_trained, {"stage": 1, "precision": "fp32"}, tmp_path)
    return tmp_path / "step-00000003"


def test_damage_is_refused_with_the_file_and_the_reason(written: Path) -> None:
    file = written / "rank-00001.safetensors"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content, reason in ((whole[:-1], "bytes"), (bytes(flipped), "damaged")):
        file.write_bytes(content)
        with pytest.raises(BadCheckpoint, match=reason) as caught:
            Checkpoint(written)
        assert "rank-00001.safetensors" in str(caught.value)
    file.unlink()
    with pytest.raises(BadCheckpoint, match="missing"):
        Checkpoint(written)


def test_a_manifest_cannot_reach_outside(written: Path) -> None:
    manifest = json.loads((written / MANIFEST).read_text())
    manifest["files"]["../rank-00000.safetensors"] = manifest["files"]["rank-00000.safetensors"]
    manifest.pop("sha256")
    (written / MANIFEST).write_bytes(seal(manifest))
    with pytest.raises(BadCheckpoint, match="outside"):
        Checkpoint(written)


def test_the_newest_good_one_is_found_and_old_ones_go(tmp_path: Path) -> None:
    pool.run(2, write_three, tmp_path)
    assert list_steps(tmp_path) == [1, 2, 3]
    file = tmp_path / "step-00000003" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    newest, refused = find_newest(tmp_path)
    assert newest is not None and newest.step == 2
    assert len(refused) == 1 and "rank-00000" in refused[0]
    remove_old(tmp_path, newest=3, config=CheckpointConfig(keep_last=2), losses={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def write_three(folder: Path) -> None:
    engine = toy_engine(stage=2)
    sparsity = attach(engine)
    for step in range(3):
        train(engine, sparsity, step, step + 1)
        save(engine, sparsity, folder, step + 1)


def half_written(folder: Path) -> bool:
    """Rank 1 dies before its part is done: nothing may become visible."""
    engine = toy_engine(stage=2)
    sparsity = attach(engine)
    train(engine, sparsity, 0, 1)
    if engine.partition.rank == 0:
        from distributed.checkpoint import writing as writer

        writer._COMMIT_SECONDS, before = 0.5, writer._COMMIT_SECONDS
        try:
            save(engine, sparsity, folder, 1)
        except TimeoutError:
            return True
        finally:
            writer._COMMIT_SECONDS = before
        return False
    return True


def test_a_missing_rank_leaves_no_checkpoint(tmp_path: Path) -> None:
    assert all(pool.run(2, half_written, tmp_path))
    assert list_steps(tmp_path) == [] and find_newest(tmp_path) == (None, [])
