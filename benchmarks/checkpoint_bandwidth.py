"""How fast a checkpoint is copied, written, verified and read, against a plain copy of its bytes.

    python benchmarks/checkpoint_bandwidth.py --weights 29500000 --folder /tmp --repeat 5

One rank with random fp32 weights, 90 % of them pruned, and two moments of them. Best of the
repeats, seconds and GB/s; the plain copy is cp's: one sequential read from the page cache and one
write, with an fsync at the end.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from distributed.checkpoint.reading import MASTER, Checkpoint
from distributed.checkpoint.writing import HostCopy, write_snapshot
from distributed.files import sha256_of
from distributed.fragment import Fragment
from distributed.hashing import hex_digest
from sparsity.integrity import check_masks
from sparsity.selection.masks import FragmentMask

MATRIX = 768 * 3072


def build_partition(weights: int) -> tuple[Any, dict[Fragment, FragmentMask]]:
    sizes = [MATRIX] * (weights // MATRIX) + [weights % MATRIX]
    fragments = {
        Fragment(f"weight.{i}", 0, size, 0, 0, 0, size): torch.randn(3, size)
        for i, size in enumerate(sizes)
        if size
    }
    partition = SimpleNamespace(
        rank=0,
        world_size=1,
        fragments=tuple(fragments),
        numels={f.name: f.length for f in fragments},
        master=lambda f: fragments[f][0],
        moments=lambda f: {"exp_avg": fragments[f][1], "exp_avg_sq": fragments[f][2]},
        optimizer_steps=lambda: 1,
    )
    masks = {f: FragmentMask(f, torch.device("cpu")) for f in fragments}
    for fragment, mask in masks.items():
        mask.load(torch.rand(fragment.length) < 0.1)
        mask.apply(fragments[fragment][0])
    return partition, masks


def build_sparsity(partition: Any, masks: dict[Fragment, FragmentMask]) -> Any:
    """As much of a SparsityController as `check_masks` looks at."""
    owned = {f: mask.owned_digest() for f, mask in masks.items()}
    digest = hex_digest(sum(part for _, part in owned.values()))

    def find_violation() -> str | None:
        names = (f.name for f, mask in masks.items() if mask.count_alive(partition.master(f)))
        return next(names, None)

    state = SimpleNamespace(pruned={f.name: n for f, (n, _) in owned.items()}, digest=digest)
    return SimpleNamespace(state=state, find_violation=find_violation)


def best(repeat: int, action: Callable[[], Any]) -> float:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=29_500_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    partition, masks = build_partition(options.weights)
    sparsity = build_sparsity(partition, masks)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        copy = HostCopy()
        packed: dict[Fragment, torch.Tensor] = {}

        def take() -> Any:
            return copy.take(partition, step=1, packed_masks=packed, state={})

        def check() -> None:
            packed.update({f: mask.pack() for f, mask in masks.items()})
            check_masks(sparsity, packed)

        first_check, first = best(1, check), best(1, take)
        snapshot = take()
        final = folder / "step-00000001"

        def write() -> None:
            shutil.rmtree(final, ignore_errors=True)
            write_snapshot(folder, snapshot, attempt="benchmark")

        def read() -> None:
            reader = checkpoint.reader(MASTER)
            for name, numel in checkpoint.numels.items():
                reader(name, 0, numel)

        def plain_copy() -> None:
            target = folder / "copy"
            shutil.copyfile(file, target)
            with open(target, "rb") as opened:
                os.fsync(opened.fileno())

        seconds = {"copy to host, first": first, "copy to host": best(options.repeat, take)}
        seconds |= {"pack and check masks, first": first_check}
        seconds |= {"pack and check masks": best(options.repeat, check)}
        seconds["write and commit"] = best(options.repeat, write)
        file = final / "rank-00000.safetensors"
        checkpoint = Checkpoint(final)
        seconds["plain copy"] = best(options.repeat, plain_copy)
        seconds["SHA-256 alone"] = best(options.repeat, lambda: sha256_of(file))
        seconds["open and verify"] = best(options.repeat, lambda: Checkpoint(final))
        size = file.stat().st_size
        seconds["read masters"] = best(options.repeat, read)
        bytes_of = dict.fromkeys(seconds, size)
        bytes_of["read masters"] = 4 * options.weights
    report = {
        "weights": options.weights,
        "bytes": size,
        "figures": {
            name: {"seconds": round(s, 3), "GB/s": round(bytes_of[name] / s / 1e9, 2)}
            for name, s in seconds.items()
        },
    }
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
