"""The exact global threshold against its peers: time, peak extra memory, bytes on the wire.

    python benchmarks/threshold.py --numel 84934656 --ranks 1 2

Each method finds the k-th smallest |w| of the same fp32 weights, in processes of its own, and must
give the same answer. On several ranks each holds an equal share; a peer gathers it to rank 0 first,
ours sends counts. Time is the slowest rank's, the best of the repeats; the floor is one plain read.
Extra memory is how far the first repeat lifts the resident set (on a GPU: the allocated memory) of
rank 0, after the method has run on a few weights: threads and libraries are there by then. Each row
is printed when it is measured; with --json FILE each is also a line of that file.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.utils import prune

from distributed.fragment import Fragment
from distributed.world import all_reduce_sum
from sparsity.patterns.name import PatternName
from sparsity.patterns.single import SingleWeights, find_cuts
from sparsity.pruning import update_masks
from sparsity.selection.masks import FragmentMask
from sparsity.selection.threshold import run
from sparsity.targets import Scope

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


def read_once(shard: Shard) -> None:
    float(shard.weights.sum())


METHODS: dict[str, Callable[[Shard], float | None]] = {
    "plain read (floor)": read_once,
    "sparsebert: threshold": ours,
    "sparsebert: threshold, masks and digest": ours_with_masks,
    "torch.kthvalue": on_gathered(lambda w, k: float(w.abs().kthvalue(k).values)),
    "numpy.partition": on_gathered(by_numpy),
    "torch.topk": on_gathered(lambda w, k: float(w.abs().topk(k, largest=False).values[-1])),
    "torch.sort": on_gathered(lambda w, k: float(w.abs().sort().values[k - 1])),
    "torch prune.global_unstructured": on_gathered(by_global_unstructured),
}


@dataclass(frozen=True)
class Row:
    """What one method took."""

    method: str
    seconds: float  # the best of the repeats
    median_seconds: float
    answer: float | None
    extra_bytes: int
    wire_bytes: int


def measure(
    rank: int,
    ranks: int,
    store: str,
    methods: list[str],
    options: argparse.Namespace,
    numel: int,
    out: Any,
) -> None:
    """Collective: one process; rank 0 puts a Row of each method into `out`."""
    torch.set_num_threads(max(1, options.threads // ranks))
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)
    for method in methods:
        row = measure_method(method, options, numel, device)
        if rank == 0:
            out.put(row)
    dist.destroy_process_group()


def measure_method(
    method: str, options: argparse.Namespace, numel: int, device: torch.device
) -> Row:
    """Collective: run `method` on fresh weights, the same for every method."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    METHODS[method](Shard(FEW, options.fragments, options.sparsity, device))
    shard = Shard(numel, options.fragments, options.sparsity, device)
    times: list[float] = []
    answer, extra = None, 0
    before = reset_peak(device)
    for repeat in range(options.repeats):
        shard.wire_bytes = 0
        for mask in shard.masters:
            mask.keep.fill_(-1)
        dist.barrier()
        synchronize()
        started = time.perf_counter()
        answer = METHODS[method](shard)
        synchronize()
        if dist.get_world_size() > 1:
            dist.barrier()
        times.append(time.perf_counter() - started)
        if repeat == 0:
            extra = peak_memory(device) - before
    return Row(method, min(times), statistics.median(times), answer, extra, shard.wire_bytes)


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


def find_rows(options: argparse.Namespace, numel: int, ranks: int) -> Iterator[Row]:
    """A row of each method that is not left out, as it is measured.

    Raises:
        AssertionError: its answer is another than ours.
    """
    methods = [m for m in METHODS if not any(m.startswith(word) for word in options.skip)]
    want: float | None = None
    for together in [methods] if options.together else [[method] for method in methods]:
        for row in _run_processes(together, options, numel, ranks):
            yield row
            if row.method.startswith("plain"):
                continue
            want = row.answer if want is None else want
            assert row.answer == want, (row.method, row.answer, want)


def _run_processes(
    methods: list[str], options: argparse.Namespace, numel: int, ranks: int
) -> Iterator[Row]:
    out = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, f"{folder}/store", methods, options, numel, out)
        context = mp.spawn(measure, arguments, nprocs=ranks, join=False)
        done = False
        while not done:
            done = context.join(timeout=0.05)  # raises if a process failed
            while not out.empty():
                yield out.get()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numel", type=int, nargs="+", default=[84_934_656])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--fragments", type=int, default=72, help="matrices; BERT-base has 72")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="over all ranks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out")
    parser.add_argument(
        "--together",
        action="store_true",
        help="all methods in the same processes: quicker where a process is slow to start",
    )
    parser.add_argument("--json", type=Path, help="append each row to this file")
    return parser


def main() -> None:
    options = build_parser().parse_args()
    for numel in options.numel:
        for ranks in options.ranks:
            print(f"\n{numel:,} weights in {options.fragments} fragments, {ranks} rank(s), "
                  f"{options.threads} threads, sparsity {options.sparsity}, "
                  f"{options.device}\n")  # fmt: skip
            print("| method | seconds | plain reads | ours is faster by | extra memory, share of "
                  "a shard | bytes on the wire |\n|---|---|---|---|---|---|",
                  flush=True)  # fmt: skip
            seconds: dict[str, float] = {}
            for row in find_rows(options, numel, ranks):
                seconds[row.method] = row.seconds
                reads = _ratio(row.seconds, seconds.get("plain read (floor)"), "")
                faster = _ratio(row.seconds, seconds.get("sparsebert: threshold"), "x")
                share = row.extra_bytes / (numel / ranks * 4)
                print(f"| {row.method} | {row.seconds:.4g} | {reads} | {faster} | {share:.1%} | "
                      f"{row.wire_bytes:,} |", flush=True)  # fmt: skip
                if options.json:
                    with open(options.json, "a") as file:
                        file.write(json.dumps({"numel": numel, "ranks": ranks, **asdict(row)}))
                        file.write("\n")


def _ratio(seconds: float, base: float | None, unit: str) -> str:
    return "-" if base is None else f"{seconds / base:.1f}{unit}"


if __name__ == "__main__":
    main()
