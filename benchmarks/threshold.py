"""The exact global threshold against its peers: time, peak extra memory, bytes on the wire.

    python benchmarks/threshold.py --numel 84934656 --ranks 1 2

Each method finds the k-th smallest |w| of the same fp32 weights, in processes of its own, and must
give the same answer. On several ranks each holds an equal share; a peer gathers it to rank 0 first,
ours sends counts. Time is the slowest rank's, the best of the repeats; the floor is one plain read.
Extra memory is how far the first repeat lifts the resident set (on a GPU: the allocated memory) of
rank 0, after the method has run on a few weights: threads and libraries are there by then.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.utils import prune

from distributed.collectives import all_reduce_sum
from distributed.partition import Fragment
from sparsity.masks import FragmentMask
from sparsity.pattern_name import PatternName
from sparsity.patterns import SingleWeights, find_cuts
from sparsity.pruning import update_masks
from sparsity.targets import Scope
from sparsity.threshold import run

STD = 0.02
FEW = 1 << 15  # weights


class Shard:
    """This rank's share of `numel` weights, and the rank k."""

    def __init__(self, numel: int, fragments: int, sparsity: float, device: torch.device) -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.numel, self.k, self.device = numel, int(numel * sparsity), device
        self.start, self.stop = numel * rank // ranks, numel * (rank + 1) // ranks
        generator = torch.Generator(device).manual_seed(rank)
        self.weights = torch.empty(self.stop - self.start, device=device)
        self.weights.normal_(0, STD, generator=generator)
        self.wire_bytes = 0
        # In training the masks are there before.
        self.masters: dict[FragmentMask, torch.Tensor] = {}
        names = [f"w{i}" for i in range(fragments)]
        bounds = [numel * i // fragments for i in range(fragments + 1)]
        for name, first, last in zip(names, bounds[:-1], bounds[1:], strict=True):
            begin, end = max(first, self.start), min(last, self.stop)
            if begin < end:
                at = begin - first
                fragment = Fragment(
                    name, at, end - begin, 0, begin - self.start, at, at + end - begin
                )
                mask = FragmentMask(fragment, device)
                self.masters[mask] = self.weights[begin - self.start : end - self.start]
        self.scopes = [Scope(tuple(names), numel, 0.0)]
        self.shapes = {n: (b - a,) for n, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)}

    def count_bytes(self, counts: torch.Tensor) -> torch.Tensor:
        self.wire_bytes += counts.numel() * counts.element_size()
        return all_reduce_sum(counts)

    def gathered(self) -> torch.Tensor | None:
        """All weights on rank 0; None elsewhere."""
        if dist.get_world_size() == 1:
            return self.weights
        rank, ranks = dist.get_rank(), dist.get_world_size()
        shares = [self.numel * (r + 1) // ranks - self.numel * r // ranks for r in range(ranks)]
        whole = torch.empty(self.numel, device=self.device) if rank == 0 else None
        dist.gather(self.weights, None if whole is None else list(whole.split(shares)), dst=0)
        self.wire_bytes += self.numel * 4 - shares[0] * 4
        return whole


def ours(shard: Shard) -> float | None:
    pattern = SingleWeights(shard.masters)
    rounds = find_cuts(pattern, list(shard.masters), shard.scopes, [shard.k])
    return run(rounds, shard.count_bytes)[0].threshold


def ours_with_masks(shard: Shard) -> float | None:
    """The whole update: threshold, masks, count and digest."""
    return update_masks(
        PatternName.parse("unstructured"),
        shard.masters,
        shard.shapes,
        shard.scopes,
        [shard.k],
        rank=dist.get_rank(),
        ranks=dist.get_world_size(),
        all_reduce=shard.count_bytes,
    ).threshold


def on_gathered(find: Callable[[torch.Tensor, int], float]) -> Callable[[Shard], float | None]:
    def method(shard: Shard) -> float | None:
        whole = shard.gathered()
        return None if whole is None else find(whole, shard.k)

    return method


def by_numpy(weights: torch.Tensor, k: int) -> float:
    return float(np.partition(weights.abs().cpu().numpy(), k - 1)[k - 1])


def by_global_unstructured(weights: torch.Tensor, k: int) -> float:
    module = nn.Module()
    module.w = nn.Parameter(weights, requires_grad=False)
    prune.global_unstructured([(module, "w")], pruning_method=prune.L1Unstructured, amount=k)
    return float(weights.abs()[module.w_mask == 0].max())


METHODS: dict[str, Callable[[Shard], float | None]] = {
    "plain read (floor)": lambda shard: float("nan") if shard.weights.sum() else None,
    "sparsebert: threshold": ours,
    "sparsebert: threshold, masks and digest": ours_with_masks,
    "torch.kthvalue": on_gathered(lambda w, k: float(w.abs().kthvalue(k).values)),
    "numpy.partition": on_gathered(by_numpy),
    "torch.topk": on_gathered(lambda w, k: float(w.abs().topk(k, largest=False).values[-1])),
    "torch.sort": on_gathered(lambda w, k: float(w.abs().sort().values[k - 1])),
    "torch prune.global_unstructured": on_gathered(by_global_unstructured),
}


def measure(
    rank: int,
    ranks: int,
    store: str,
    method: str,
    options: argparse.Namespace,
    numel: int,
    out: Any,
) -> None:
    threads = max(1, options.threads // ranks)
    torch.set_num_threads(threads)
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)
    METHODS[method](Shard(FEW, options.fragments, options.sparsity, device))
    shard, times = Shard(numel, options.fragments, options.sparsity, device), []
    answer, extra = None, None
    before = reset_peak(device)
    for _ in range(options.repeats):
        shard.wire_bytes = 0
        for mask in shard.masters:
            mask.keep.fill_(-1)
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        answer = METHODS[method](shard)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if ranks > 1:
            dist.barrier()
        times.append(time.perf_counter() - started)
        if extra is None:
            extra = peak_memory(device) - before
    if rank == 0:
        out.put((min(times), answer, extra, shard.wire_bytes))
    dist.destroy_process_group()


def reset_peak(device: torch.device) -> int:
    """Bytes in use now, where the peak starts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numel", type=int, nargs="+", default=[84_934_656])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--fragments", type=int, default=72, help="matrices; BERT-base has 72")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="over all ranks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out")
    options = parser.parse_args()
    context = mp.get_context("spawn")
    for numel in options.numel:
        for ranks in options.ranks:
            print(f"\n{numel:,} weights in {options.fragments} fragments, {ranks} rank(s), "
                  f"{options.threads} threads, sparsity {options.sparsity}, "
                  f"{options.device}\n")  # fmt: skip
            print("| method | seconds | plain reads | ours is faster by | extra memory, share of "
                  "a shard | bytes on the wire |\n|---|---|---|---|---|---|")  # fmt: skip
            results: dict[str, tuple[float, float, int, int]] = {}
            for method in METHODS:
                if any(method.startswith(skipped) for skipped in options.skip):
                    continue
                out = context.SimpleQueue()
                with tempfile.TemporaryDirectory() as folder:
                    mp.spawn(
                        measure,
                        (ranks, f"{folder}/store", method, options, numel, out),
                        nprocs=ranks,
                    )
                results[method] = out.get()
            floor = results["plain read (floor)"][0]
            base = results["sparsebert: threshold"][0]
            want = results["sparsebert: threshold"][1]
            for method, (seconds, answer, extra, wire) in results.items():
                if not method.startswith("plain"):
                    assert answer == want, (method, answer, want)
                share = extra / (numel / ranks * 4)
                print(f"| {method} | {seconds:.4f} | {seconds / floor:.1f} | {seconds / base:.1f}x "
                      f"| {share:.1%} | {wire:,} |")  # fmt: skip
            print(json.dumps({"numel": numel, "ranks": ranks, "results": results}))


if __name__ == "__main__":
    main()
