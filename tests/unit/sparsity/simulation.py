"""Many ranks in one process: the pure selection, driven in lockstep over any partitioning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from distributed.fragment import Fragment
from sparsity.patterns.name import PatternName
from sparsity.patterns.single import Pattern, find_cuts
from sparsity.pruning import build_pattern
from sparsity.selection.masks import FragmentMask, sum_modulo_2_64
from sparsity.selection.threshold import Cut, MasksDoNotFit, NonFiniteWeights
from sparsity.targets import Scope

LARGEST, SMALLEST, DENORMAL = 3.4028235e38, 1.1754944e-38, 1e-45
# Few values, so that most weights tie; and the ends of what fp32 can hold.
AWKWARD = [0.0, -0.0, 0.5, -0.5, 1.0, DENORMAL, -DENORMAL, 2e-45, SMALLEST, LARGEST, -LARGEST]

Float32Array = npt.NDArray[np.float32]
Bounds = Sequence[int]  # P + 1 ascending positions in a flattened parameter, from 0 to its size


@dataclass
class Wire:
    """What one rank put on the wire."""

    rounds: int = 0
    bytes: int = 0


def split_randomly(numel: int, ranks: int, rng: np.random.Generator) -> list[int]:
    """Uneven bounds: most pieces differ, some are empty."""
    return [0, *sorted(rng.integers(0, numel + 1, ranks - 1).tolist()), numel]


@dataclass
class Cluster:
    """`ranks` simulated ranks that each hold a piece, perhaps empty, of each parameter."""

    weights: Mapping[str, Float32Array]
    bounds: Mapping[str, Bounds]
    pattern: str = "unstructured"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    wire: Wire = field(default_factory=Wire)
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.ranks = len(next(iter(self.bounds.values()))) - 1
        self.masters: list[dict[str, torch.Tensor]] = []
        self.masks: list[dict[str, FragmentMask]] = []
        for rank in range(self.ranks):
            masters, masks = {}, {}
            for slot, (name, values) in enumerate(self.weights.items()):
                start, stop = self.bounds[name][rank : rank + 2]
                if start < stop:
                    masters[name] = torch.from_numpy(values[start:stop].copy()).to(self.device)
                    fragment = Fragment(name, start, stop - start, slot, 0, start, stop)
                    masks[name] = FragmentMask(fragment, torch.device(self.device))
            self.masters.append(masters)
            self.masks.append(masks)

    def select(self, scopes: Sequence[Sequence[str]], counts: Sequence[int]) -> list[Cut]:
        """Run all ranks' selections in lockstep; they must agree."""
        unit = PatternName.parse(self.pattern).unit_numel
        wide = [Scope(tuple(n), sum(self.weights[i].size for i in n), 0, unit) for n in scopes]
        self.patterns = [self._build_pattern(rank) for rank in range(self.ranks)]
        running = [
            find_cuts(pattern, list(self.masks[rank].values()), wide, list(counts))
            for rank, pattern in enumerate(self.patterns)
        ]
        offered = [next(selection) for selection in running]
        while True:
            total = sum(offered[1:], start=offered[0].clone())
            assert total.dtype == torch.int64
            self.wire.rounds += 1
            self.wire.bytes += total.numel() * 8
            answers = [_send(selection, total) for selection in running]
            if isinstance(answers[0], torch.Tensor):
                offered = [a for a in answers if isinstance(a, torch.Tensor)]
                assert len(offered) == self.ranks, "some ranks are done and others are not"
                continue
            assert all(answer == answers[0] for answer in answers), answers
            if isinstance(answers[0], _Refusal):
                raise answers[0].error
            assert isinstance(answers[0], list)
            return answers[0]

    def prune(self, scopes: Sequence[Sequence[str]], counts: Sequence[int]) -> tuple[int, int]:
        """Select and apply; the number of pruned weights and their digest, over all ranks."""
        cuts = self.select(scopes, counts)
        cut_of = {name: cut for names, cut in zip(scopes, cuts, strict=True) for name in names}
        results = []
        for masks, pattern in zip(self.masks, self.patterns, strict=True):
            here = {m: cut_of[name] for name, m in masks.items() if cut_of[name].bits >= 0}
            results += pattern.prune(here).values()
        return sum(count for count, _ in results), sum_modulo_2_64([d for _, d in results])

    def keep(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Whole masks, put together from the ranks' pieces."""
        return {
            name: np.concatenate(
                [np.zeros(0, bool)]
                + [(masks[name].keep != 0).cpu().numpy() for masks in self.masks if name in masks]
            )
            for name in self.weights
        }

    def _build_pattern(self, rank: int) -> Pattern:
        masters = {mask: self.masters[rank][name] for name, mask in self.masks[rank].items()}
        name = PatternName.parse(self.pattern)
        return build_pattern(name, masters, self.shapes, rank=rank, ranks=self.ranks)


@dataclass(frozen=True)
class _Refusal:
    """Equal to any other refusal of the same kind and words."""

    kind: type
    words: str
    error: Exception = field(compare=False)


def _send(selection: object, total: torch.Tensor) -> torch.Tensor | list[Cut] | _Refusal:
    try:
        return selection.send(total.clone())  # type: ignore[attr-defined,no-any-return]
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except (NonFiniteWeights, MasksDoNotFit) as error:
        return _Refusal(type(error), str(error), error)
