"""What a step trains on, and what it is validated by; the recipes implement these."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from distributed.zero import Engine

Int64Array = npt.NDArray[np.int64]


class Inputs(Protocol):
    """One forward pass."""

    def to(self, device: torch.device) -> dict[str, Any]:
        """The arguments of the model's forward, with the tensors on `device`."""


class Batches(Protocol):
    """This rank's share of every step; each method is a pure function of the step."""

    loss_name: str  # of the loss in the log
    micro_steps: int  # forwards of each rank in a step

    def epoch(self, step: int) -> int:
        """The epoch of the first row of the step's batch."""

    def row_ids(self, step: int) -> Int64Array:
        """Rows of the global batch, int64 [B]: the same on every rank."""

    def loss_terms(self, step: int) -> int:
        """Terms of the mean loss in the global batch."""

    def global_tokens(self, step: int) -> int:
        """Tokens of the global batch."""

    def micro_batches(self, step: int) -> Iterable[Inputs]:
        """As many on every rank."""


class Validation(Protocol):
    """What is measured on held-out data, alike on all ranks."""

    @property
    def is_satisfied(self) -> bool:
        """Whether to end before the last step."""

    def is_due(self, finished_steps: int) -> bool:
        """Whether to validate after that many steps."""

    def evaluate(self, engine: Engine, finished_steps: int) -> dict[str, float]:
        """Collective: the figures."""
