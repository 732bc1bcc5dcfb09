"""What a threshold ranges over: scopes of prunable parameters, and how many weights each prunes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from distributed.errors import BadInput
from sparsity.patterns.name import PatternName
from sparsity.schedule import SparsityConfig, compute_pruned_count, compute_target


@dataclass(frozen=True)
class Scope:
    """Parameters that share one threshold; `unit_numel` weights are pruned together."""

    names: tuple[str, ...]
    numel: int
    final_sparsity: float
    unit_numel: int = 1

    def pruned_count(self, config: SparsityConfig, step: int) -> int:
        """How many of the scope's weights are zero after an update before `step`."""
        target = compute_target(config, step, self.final_sparsity)
        return compute_pruned_count(target, self.numel // self.unit_numel) * self.unit_numel


def build_scopes(
    config: SparsityConfig, prunable: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> tuple[Scope, ...]:
    """Divide the prunable parameters, in the order given, as `config` says.

    Raises:
        BadInput: if there is nothing to prune, a group matches nothing, or a shape does not fit
            the pattern.
    """
    if not prunable:
        raise BadInput("the model has no prunable weights: remove the sparsity section")
    pattern = PatternName.parse(config.pattern)
    for name in prunable:
        pattern.check_shape(name, shapes[name])
    members: list[list[str]] = [[] for _ in range(len(config.groups) + 1)]
    for name in prunable:
        matches = [i for i, g in enumerate(config.groups) if fnmatchcase(name, g.match)]
        members[matches[0] if matches else -1].append(name)
    for i, group in enumerate(config.groups):
        if not members[i]:
            raise BadInput(
                f"sparsity.groups.{i}.match {group.match} takes no prunable parameter; their names "
                f"are like {prunable[0]}"
            )
    finals = [*(g.final_sparsity for g in config.groups), config.final_sparsity]
    scopes = []
    for names, final in zip(members, finals, strict=True):
        parts = [[name] for name in names] if config.scope == "per_tensor" else [names]
        for part in parts:
            if part:
                numel = sum(math.prod(shapes[name]) for name in part)
                scopes.append(Scope(tuple(part), numel, final, pattern.unit_numel))
    return tuple(scopes)
