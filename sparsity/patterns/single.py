"""What is pruned together and ranked against what: single weights, N of M inputs, or blocks.

Every pattern turns this rank's fragments into `Population`s for the exact selection, and the cut
that was found back into masks. `NofM` and `Blocks` (structured.py) ask the ranks for the pieces of
units that straddle them; single weights need nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from sparsity.selection import device
from sparsity.selection.host import HostWeights, in_threads
from sparsity.selection.masks import FragmentMask
from sparsity.selection.population import LiveWeights, Population
from sparsity.selection.threshold import Cut, MasksDoNotFit, Rounds, select
from sparsity.targets import Scope


class Pattern(Protocol):
    """How fragments are ranked. Made anew for each update."""

    def exchange(self) -> Rounds[None]:
        """Learn from the other ranks what the ranking of this rank's fragments needs."""
        ...

    def population(self, mask: FragmentMask) -> Population:
        """What this rank counts of the fragment."""
        ...

    def prune(self, cuts: Mapping[FragmentMask, Cut]) -> dict[FragmentMask, tuple[int, int]]:
        """Prune each mask up to its cut; for each what `FragmentMask.prune` returns."""
        ...


class SingleWeights:
    """Every weight on its own."""

    def __init__(self, masters: Mapping[FragmentMask, torch.Tensor]) -> None:
        self._masters = masters

    def exchange(self) -> Rounds[None]:
        """Nothing to learn."""
        yield from ()

    def population(self, mask: FragmentMask) -> Population:
        """The owned part of the fragment."""
        whole = Population(self._masters[mask], mask.keep, mask.uid, mask.fragment.start)
        return owned_part(whole, mask)

    def prune(self, cuts: Mapping[FragmentMask, Cut]) -> dict[FragmentMask, tuple[int, int]]:
        """Weights up to the cut."""
        # Without the mask: pruning passes over what is pruned already.
        whole = {m: Population(self._masters[m], None, m.uid, m.fragment.start) for m in cuts}
        return prune_weights(whole, cuts)


def find_cuts(
    pattern: Pattern,
    masks: Sequence[FragmentMask],
    scopes: Sequence[Scope],
    wanted: Sequence[int],
) -> Rounds[list[Cut]]:
    """One cut a scope that prunes `wanted[s]` more of its weights, whole units of the pattern.

    Raises:
        NonFiniteWeights: on all ranks, if a live weight is infinite or NaN.
        MasksDoNotFit: on all ranks, if the pattern leaves too few weights to choose from.
    """
    yield from pattern.exchange()
    by_name: dict[str, list[Population]] = {}
    for mask in masks:
        if mask.fragment.owned_start < mask.fragment.owned_stop:
            by_name.setdefault(mask.fragment.name, []).append(pattern.population(mask))
    scopes_here = [
        live_weights([p for name in s.names for p in by_name.get(name, [])]) for s in scopes
    ]
    units = [k // s.unit_numel for k, s in zip(wanted, scopes, strict=True)]
    counted = yield torch.tensor([scope.count for scope in scopes_here])
    live = [int(n) for n in counted]
    for k, n, scope in zip(units, live, scopes, strict=True):
        if k > n:
            raise MasksDoNotFit(f"{k} units of {scope.names[0]}... are to go and {n} may")
    return (yield from select(scopes_here, units, live))


def live_weights(populations: Sequence[Population]) -> LiveWeights:
    """The live weights of one scope, on whatever device they are."""
    if populations and device.has_kernels(populations[0].weights.device):
        return device.DeviceWeights(populations)
    return HostWeights([population.on_host() for population in populations])


def prune_weights(
    populations: Mapping[FragmentMask, Population], cuts: Mapping[FragmentMask, Cut]
) -> dict[FragmentMask, tuple[int, int]]:
    """Prune each mask's live weights, those of its whole fragment, up to its cut."""
    if cuts and device.has_kernels(next(iter(cuts)).keep.device):
        return device.prune(populations, cuts)
    return prune_pieces({mask: selected_weights(populations[mask], cuts[mask]) for mask in cuts})


def prune_pieces(
    selected: Mapping[FragmentMask, Iterator[tuple[int, torch.Tensor]]],
) -> dict[FragmentMask, tuple[int, int]]:
    """Prune each mask by (offset, bool [c]) piece by piece; masks on the host share the threads."""
    masks = list(selected)
    where = masks[0].keep.device if masks else torch.device("cpu")
    pruned = in_threads(lambda mask: mask.prune(selected[mask]), masks, where)
    return dict(zip(masks, pruned, strict=True))


def owned_part(population: Population, mask: FragmentMask) -> Population:
    """The part of a fragment's population that this rank owns."""
    owned = mask.fragment.owned
    keep = None if population.keep is None else population.keep[owned]
    return Population(population.weights[owned], keep, population.uid, mask.fragment.owned_start)


def selected_weights(population: Population, cut: Cut) -> Iterator[tuple[int, torch.Tensor]]:
    """(offset, bool [c]) piece by piece: the live weights that `cut` selects."""
    for bits, at in population.chunks():
        selected = cut.selects(bits, population.uid, population.start + at)
        live = population.live(at, at + bits.numel())
        yield at, selected if live is None else selected & live
