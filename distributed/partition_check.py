"""Check that fragments cover every weight exactly once and match what the forward reads."""

import torch

from distributed.hashing import name_hash, position_hash
from distributed.partition import Partition
from distributed.world import all_reduce_max, all_reduce_sum

# Positions at which the copy that the forward reads is compared with the master, per fragment.
_SAMPLES = 4096
_MISPLACED = 2  # what a rank says of a parameter; 1 says that its copies differ


def check_partition(partition: Partition) -> None:
    """Collective: raise on all ranks unless each weight is owned once and sampled copies agree.

    Every fragment lies within its master and apart from the others, so padding is in none.

    Owned ranges tile [0, numel) exactly when the hashes of their starts less those of their stops
    leave hash(0) - hash(numel): forward edges with one unit of flow from 0 to numel are one path.

    Raises:
        RuntimeError: naming the first parameter that is not as it should be.
    """
    names = list(partition.numels)
    row = {name: i for i, name in enumerate(names)}
    balance = torch.zeros(len(names), dtype=torch.int64)
    differs = torch.zeros(len(names), dtype=torch.int64)
    misplaced = _find_misplaced(partition)
    for f in partition.fragments:
        if f.name in misplaced:
            differs[row[f.name]] = _MISPLACED
            continue
        if f.owned_start < f.owned_stop:
            ends = _edge_hashes(f.name, f.owned_start, f.owned_stop)
            balance[row[f.name]] += ends[0] - ends[1]
        stride = max(1, f.length // _SAMPLES)
        weight, master = partition.weight(f)[::stride], partition.master(f)[::stride]
        cast = master.to(device=weight.device, dtype=weight.dtype)
        # A NaN is not itself; to say that weights are not finite is others' work.
        same = (weight == cast) | (weight.isnan() & cast.isnan())
        differs[row[f.name]] |= int(not same.all())
    balance, differs = all_reduce_sum(balance), all_reduce_max(differs)
    for name, i in row.items():
        if differs[i] == _MISPLACED:
            raise RuntimeError(f"{name} is not in its place in a rank's fp32 masters")
        ends = _edge_hashes(name, 0, partition.numels[name])
        if partition.numels[name] and balance[i] != ends[0] - ends[1]:
            raise RuntimeError(f"the ranks' partitions do not tile {name} exactly once")
        if differs[i]:
            raise RuntimeError(f"the model's copy of {name} is not its fp32 master, rounded")


def _find_misplaced(partition: Partition) -> set[str]:
    """Parameters with a fragment beyond its master's end or over another fragment."""
    numels = [master.numel() for master in partition.masters()]
    ends = [0] * len(numels)
    wrong = set()
    for f in sorted(partition.fragments, key=lambda f: (f.slot, f.offset)):
        if f.offset < ends[f.slot] or f.offset + f.length > numels[f.slot]:
            wrong.add(f.name)
        ends[f.slot] = f.offset + f.length
    return wrong


def _edge_hashes(name: str, start: int, stop: int) -> torch.Tensor:
    return position_hash(name_hash(name), torch.tensor([start, stop]))
