"""What a threshold ranges over: scopes of prunable parameters, and how many weights each prunes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig, compute_pruned_count


@dataclass(frozen=True)
class Scope:
    """Parameters that share one threshold."""

    names: tuple[str, ...]
    numel: int

    def pruned_count(self, target: Fraction) -> int:
        """How many of the scope's weights are zero at sparsity `target`."""
        return compute_pruned_count(target, self.numel)


def build_scopes(
    config: SparsityConfig, prunable: Sequence[str], numels: Mapping[str, int]
) -> tuple[Scope, ...]:
    """Divide the prunable parameters, in the order given, as `config.scope` says."""
    if not prunable:
        raise BadInput("the model has no prunable weights: remove the sparsity section")
    if config.scope == "per_tensor":
        return tuple(Scope((name,), numels[name]) for name in prunable)
    return (Scope(tuple(prunable), sum(numels[name] for name in prunable)),)
