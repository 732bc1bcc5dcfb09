"""Parameters that pruning would take whole: with nothing left, no gradient reaches a weight again.

A new adapter's second matrix (LoRA's B) is all zero. Zeros are the smallest magnitudes, so one
threshold for all weights takes the whole of it before it has learned anything.
"""

import logging
from collections.abc import Collection, Mapping, Sequence

import torch

from distributed.errors import BadInput
from distributed.partition import Partition
from distributed.world import all_reduce_sum
from sparsity.patterns.name import PatternName
from sparsity.schedule import SparsityConfig
from sparsity.targets import Scope

log = logging.getLogger(__name__)


def find_doomed(config: SparsityConfig, scopes: Sequence[Scope], partition: Partition) -> list[str]:
    """Collective: all-zero parameters that the schedule would prune whole, were they to stay so."""
    last = config.last_update_step
    if last is None or PatternName.parse(config.pattern).max_sparsity < 1:
        return []  # nothing is pruned, or a part of every group of weights stays
    zero = find_all_zero(partition, [name for scope in scopes for name in scope.names])
    doomed = []
    for scope in scopes:
        of_scope = [name for name in scope.names if name in zero]
        numel = sum(partition.numels[name] for name in of_scope)
        if scope.pruned_count(config, last) >= numel:  # with fewer to prune, some of the zeros stay
            doomed += of_scope
    return doomed


def check_pruned_whole(
    partition: Partition,
    pruned: Mapping[str, int],
    newly: Mapping[str, int],
    *,
    must_learn: Collection[str],
) -> None:
    """Collective: after an update, refuse a parameter that went whole unlearned; log others.

    Args:
        partition: whose masters still hold the weights of before the update.
        pruned: parameter -> how many of its weights are pruned.
        newly: how many of them by this update.
        must_learn: parameters that began as zeros.

    Raises:
        BadInput: on all ranks, naming a parameter that must learn or whose weights are all zero.
    """
    whole = [
        name for name, count in newly.items() if count and pruned[name] == partition.numels[name]
    ]
    if not whole:
        return
    zero = find_all_zero(partition, whole)
    refused = [name for name in whole if name in zero or name in must_learn]
    if refused:
        how = "as all of its weights are zero" if refused[0] in zero else "and it began as zeros"
        raise BadInput(
            f"{refused[0]} would be pruned whole, {how}, so that it could never learn: name what "
            "to prune with prunable=[...], without it, or let prune_start_step come later"
        )
    if partition.rank == 0:
        for name in whole:
            log.warning("%s is pruned whole: its %d weights are zero", name, pruned[name])


def find_all_zero(partition: Partition, names: Sequence[str]) -> list[str]:
    """Collective: which of these parameters hold zeros only."""
    row = {name: i for i, name in enumerate(names)}
    nonzero = torch.zeros(len(names), dtype=torch.int64)
    for f in partition.fragments:
        if f.name in row:
            nonzero[row[f.name]] += torch.count_nonzero(partition.master(f)[f.owned]).cpu()
    nonzero = all_reduce_sum(nonzero)
    return [name for name, count in zip(names, nonzero.tolist(), strict=True) if not count]
