"""What an update of the masks costs under each pattern: seconds, and against unstructured.

    python benchmarks/patterns.py --numel 4194304

One process prunes the same fresh weights to one half; best of the repeats, all in one run.
"""

import argparse
import time

import torch

from distributed.fragment import Fragment
from sparsity.patterns.name import PatternName
from sparsity.pruning import update_masks
from sparsity.selection.masks import FragmentMask
from sparsity.targets import Scope

COLUMNS = 1024
PATTERNS = ("unstructured", "2:4", "4x1", "16x16")


def seconds_of(pattern: str, weights: torch.Tensor) -> float:
    name = PatternName.parse(pattern)
    numel = weights.numel()
    mask = FragmentMask(Fragment("w", 0, numel, 0, 0, 0, numel), weights.device)
    started = time.perf_counter()
    update = update_masks(
        name,
        {mask: weights},
        {"w": (numel // COLUMNS, COLUMNS)},
        [Scope(("w",), numel, 0.5, name.unit_numel)],
        [numel // 2],
        rank=0,
        ranks=1,
        all_reduce=torch.clone,
    )
    seconds = time.perf_counter() - started
    assert update.newly.by_name["w"] == numel // 2
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numel", type=int, default=1 << 22, help="a multiple of 16,384")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    weights = torch.randn(options.numel, generator=torch.Generator().manual_seed(0))
    best = {p: min(seconds_of(p, weights) for _ in range(options.repeats)) for p in PATTERNS}
    print(
        f"{options.numel:,} weights, half of them pruned at once, {torch.get_num_threads()} threads"
    )
    for pattern, seconds in best.items():
        print(f"{pattern:12}  {seconds:.3f} s  {seconds / best['unstructured']:.1f}x")


if __name__ == "__main__":
    main()
