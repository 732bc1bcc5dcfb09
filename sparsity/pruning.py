"""One exact update of the masks of all ranks: find the cuts, prune up to them, count the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsity.patterns.name import PatternName
from sparsity.patterns.single import Pattern, SingleWeights, find_cuts
from sparsity.patterns.structured import Blocks, NofM
from sparsity.selection.masks import FragmentMask, sum_modulo_2_64
from sparsity.selection.threshold import MasksDoNotFit, run
from sparsity.targets import Scope

AllReduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Counted:
    """Pruned weights by parameter, and the sum of their position hashes, over all ranks."""

    by_name: dict[str, int]
    digest: int


@dataclass(frozen=True)
class Update:
    """What an update pruned, and at which magnitude."""

    newly: Counted
    threshold: float
    ties: int


def update_masks(
    name: PatternName,
    masters: Mapping[FragmentMask, torch.Tensor],
    shapes: Mapping[str, Sequence[int]],
    scopes: Sequence[Scope],
    wanted: Sequence[int],
    *,
    rank: int,
    ranks: int,
    all_reduce: AllReduce,
) -> Update:
    """Collective: prune `wanted[s]` more weights of each scope, the smallest by the pattern.

    Args:
        name: the pattern.
        masters: this rank's masks, which change, and the fp32 weights [length] of their fragments.
        shapes: of every prunable parameter, whole.
        scopes: which parameters share a threshold.
        wanted: weights, whole units of the pattern.
        rank: of this process.
        ranks: how many there are.
        all_reduce: sums int64 over all ranks.

    Raises:
        NonFiniteWeights: on all ranks, if a live weight is infinite or NaN.
        MasksDoNotFit: on all ranks, if earlier masks are not of this pattern.
    """
    pattern = build_pattern(name, masters, shapes, rank=rank, ranks=ranks)
    cuts = run(find_cuts(pattern, list(masters), scopes, wanted), all_reduce)
    cut_of = {name: cut for scope, cut in zip(scopes, cuts, strict=True) for name in scope.names}
    changing = {m: cut for m in masters if (cut := cut_of[m.fragment.name]).bits >= 0}
    owned = pattern.prune(changing)
    newly = count_pruned(list(shapes), owned, all_reduce)
    if sum(newly.by_name.values()) != sum(wanted):
        raise MasksDoNotFit(f"{sum(newly.by_name.values())} of {sum(wanted)} weights were pruned")
    return Update(newly, max(cut.threshold for cut in cuts), sum(cut.ties for cut in cuts))


def build_pattern(
    name: PatternName,
    masters: Mapping[FragmentMask, torch.Tensor],
    shapes: Mapping[str, Sequence[int]],
    *,
    rank: int,
    ranks: int,
) -> Pattern:
    """How this rank's fragments are ranked; see `update_masks`."""
    if name.kind == "unstructured":
        return SingleWeights(masters)
    kind = NofM if name.kind == "n_of_m" else Blocks
    return kind(name, shapes, masters, rank=rank, ranks=ranks)


def count_pruned(
    names: Sequence[str],
    owned: Mapping[FragmentMask, tuple[int, int]],
    all_reduce: AllReduce,
) -> Counted:
    """Collective: add up each mask's owned (count, digest) over the ranks."""
    row = {name: i for i, name in enumerate(names)}
    counts = torch.zeros(len(names) + 1, dtype=torch.int64)
    for mask, (count, _) in owned.items():
        counts[row[mask.fragment.name]] += count
    counts[-1] = sum_modulo_2_64([digest for _, digest in owned.values()])
    *total, digest = all_reduce(counts).tolist()
    return Counted(dict(zip(names, total, strict=True)), digest)
