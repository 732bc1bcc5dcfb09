"""What every rank knows alike about the masks."""

from dataclasses import dataclass, field

from distributed.hashing import hex_digest


@dataclass
class SparsityState:
    """What every rank knows alike about the masks; JSON for the checkpoint."""

    pruned: dict[str, int] = field(default_factory=dict)  # global count by parameter
    digest: str = hex_digest(0)
    target: float = 0.0
    threshold: float = 0.0
    ties: int = 0
    churn: float = 0.0  # share of the prunable weights pruned by the last update
    last_update_step: int = -1
    pending: bool = False  # computed, and no applied step has enforced it yet
