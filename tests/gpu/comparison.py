"""A short pretraining run with pruning on any device, to compare a GPU's with the CPU's.

    python -m tests.gpu.comparison FILE STEPS     # the CPU's runs, a JSON line each

Masks are compared exactly, in two ways. `one_shot` prunes once, before the first step, when all
devices hold the same weights: masks and digest must be those of the CPU's run at the end as well.
`cubic` prunes four times while the weights move apart by rounding, so each update is compared with
the CPU's passes over a copy of the weights that the device pruned.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.bert_step import attach_controller, build_batch, build_bert_engine, train_step
from distributed.hashing import hex_digest, name_hash, position_hash
from distributed.zero import Engine
from sparsity.controller import SparsityController
from sparsity.patterns.name import PatternName
from sparsity.pruning import update_masks
from sparsity.schedule import SparsityConfig
from sparsity.selection.masks import FragmentMask
from sparsity.targets import Scope

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 256}
VOCAB_SIZE, ROWS, ROW_TOKENS = 200, 8, 64
BATCHES = 8  # they come again and again, so that the loss falls
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Setup:
    stage: int
    precision: Literal["fp32", "bf16"]
    schedule: str

    @property
    def name(self) -> str:
        return f"stage {self.stage} {self.precision} {self.schedule}"

    @property
    def on_cpu(self) -> "Setup":
        """What it is compared with: stages differ by rounding, and one of them is enough."""
        return replace(self, stage=2)


SETUPS = (
    *(Setup(stage, "fp32", "one_shot") for stage in (0, 1, 2, 3)),
    Setup(2, "bf16", "one_shot"),
    Setup(2, "fp32", "cubic"),
    Setup(2, "bf16", "cubic"),
)

# Largest relative difference of a loss in 200 steps. On a CPU, two runs whose first weights differ
# by a relative 1e-5, a hundred times fp32's rounding, differ by 9e-5 in fp32; in bf16, whatever the
# change of the weights, by 1e-3. In these steps the loss falls from 5.3 to 2.2.
BOUNDS = {"fp32": 1e-4, "bf16": 1e-2}


def build_schedule(schedule: str, steps: int) -> SparsityConfig:
    if schedule == "one_shot":
        return SparsityConfig(schedule="one_shot", final_sparsity=0.6)
    quarter = steps // 4
    return SparsityConfig(
        initial_sparsity=0.3,
        final_sparsity=0.9,
        prune_interval_steps=quarter,
        prune_end_step=3 * quarter,
    )


def train(device_type: str, setup: Setup, *, steps: int, nudge: float = 0.0) -> dict[str, Any]:
    """Losses [steps], and digests of the masks by step, each checked against the CPU's passes.

    Args:
        device_type: "cpu" or "cuda".
        setup: what to train.
        steps: how many.
        nudge: relative change of all weights, to see how far rounding leads.

    Raises:
        AssertionError: an update's masks are not those of the CPU's passes, or a pruned weight
            is not zero.
    """
    engine = build_bert_engine(
        device_type,
        rows=ROWS,
        sizes=SIZES,
        vocab_size=VOCAB_SIZE,
        stage=setup.stage,
        precision=setup.precision,
    )
    for fragment in engine.partition.fragments if nudge else ():
        master = engine.partition.master(fragment)
        generator = torch.Generator().manual_seed(fragment.start)
        master.mul_(1 + nudge * torch.randn(master.shape, generator=generator).to(master.device))
    config = build_schedule(setup.schedule, steps)
    sparsity = attach_controller(engine, config)
    host = HostMasks(engine, sparsity)
    batches = [
        build_batch(device_type, rows=ROWS, row_tokens=ROW_TOKENS, vocab_size=VOCAB_SIZE, seed=seed)
        for seed in range(BATCHES)
    ]
    losses, digests = [], {}
    for step in range(steps):
        if sparsity.is_due(step):
            before = sparsity.pruned_numel
            masters = host.copy_masters()
            sparsity.update(step)
            digests[str(step)] = sparsity.state.digest
            want = host.update(masters, sparsity.pruned_numel - before)
            assert sparsity.state.digest == want, f"step {step}: other masks than the CPU's passes"
        loss = train_step(
            engine, batches[step % BATCHES], learning_rate=LEARNING_RATE, sparsity=sparsity
        )
        losses.append(float(loss))
    assert sparsity.find_violation() is None
    digests["end"] = digest_of_zeros(engine, sparsity)
    return {"losses": losses, "digests": digests, "pruned": sparsity.pruned_numel}


class HostMasks:
    """The same masks, kept and updated on the CPU by the passes of sparsity/selection/host.py."""

    def __init__(self, engine: Engine, sparsity: SparsityController) -> None:
        self._partition = engine.partition
        names = list(sparsity.state.pruned)
        shapes = engine.partition.shapes
        self._shapes = {name: shapes[name] for name in names}
        self._scope = Scope(tuple(names), sparsity.prunable_numel, 0.0)
        self._masks = {
            fragment: FragmentMask(fragment, torch.device("cpu"))
            for fragment in engine.partition.fragments
            if fragment.name in self._shapes
        }
        self._digest = 0

    def copy_masters(self) -> dict[FragmentMask, torch.Tensor]:
        """What the device is about to prune."""
        return {
            mask: self._partition.master(fragment).detach().to("cpu", copy=True)
            for fragment, mask in self._masks.items()
        }

    def update(self, masters: dict[FragmentMask, torch.Tensor], count: int) -> str:
        """Prune `count` more; the digest of all that is pruned."""
        update = update_masks(
            PatternName.parse("unstructured"),
            masters,
            self._shapes,
            [self._scope],
            [count],
            rank=0,
            ranks=1,
            all_reduce=torch.clone,
        )
        self._digest += update.newly.digest
        return hex_digest(self._digest)


def digest_of_zeros(engine: Engine, sparsity: SparsityController) -> str:
    """The digest of the weights that are zero: no mask is read."""
    total = 0
    for fragment in engine.partition.fragments:
        if fragment.name in sparsity.state.pruned:
            weights = engine.partition.master(fragment).detach().cpu()
            positions = (weights == 0).nonzero().flatten() + fragment.start
            total += int(position_hash(name_hash(fragment.name), positions).sum())
    return hex_digest(total)


def compare(setup: Setup, ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest relative difference of a loss between a device's run and the CPU's.

    Raises:
        AssertionError: it is above the bound of its precision, or the masks differ.
    """
    name = setup.name
    pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
    difference = max(abs(a - b) / abs(b) for a, b in pairs)
    bound = BOUNDS[setup.precision]
    assert difference <= bound, f"{name}: a loss differs by {difference:.2g}, above {bound:g}"
    assert ours["pruned"] == theirs["pruned"], f"{name}: another number of weights is pruned"
    first = next(iter(ours["digests"]))
    same = ours["digests"] if setup.schedule == "one_shot" else {first: ours["digests"][first]}
    for step, digest in same.items():
        assert digest == theirs["digests"][step], f"{name}: other masks than the CPU's ({step})"
    return difference


def train_on_cpu(file: Path, steps: int) -> subprocess.Popen[bytes]:
    """Start the CPU's runs in a process of their own: DeepSpeed serves one kind of device a
    process.
    """
    command = [sys.executable, "-m", "tests.gpu.comparison", str(file), str(steps)]
    # The model is so small that more threads only wait for each other.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def read_runs(file: Path) -> dict[str, dict[str, Any]]:
    """What `train_on_cpu` wrote, by the name of the setup."""
    return {run["name"]: run for run in map(json.loads, file.read_text().splitlines())}


def main() -> None:
    file, steps = Path(sys.argv[1]), int(sys.argv[2])
    with open(file, "w") as out:
        for setup in dict.fromkeys(setup.on_cpu for setup in SETUPS):
            run = train("cpu", setup, steps=steps)
            out.write(json.dumps({"name": setup.name, **run}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
