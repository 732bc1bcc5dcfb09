"""A teacher beside the engine: its weights, and its logits as one more input of each micro-batch.

A module of its own: whole on every rank, never trained, partitioned, pruned or counted.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bert.architecture import named_weights
from bert.folders.model_files import read_verified
from distributed.errors import BadInput
from training.batches import Batches, Inputs, Int64Array


class Teacher(Protocol):
    """A model that can say what it would answer."""

    @property
    def compute_logits(self) -> Callable[..., torch.Tensor]:
        """From a micro-batch's inputs to the logits that the loss compares, fp32."""


class DistilledBatches:
    """Batches whose inputs carry the teacher's logits."""

    def __init__(self, batches: Batches, teacher: Teacher) -> None:
        self.loss_name, self.micro_steps = batches.loss_name, batches.micro_steps
        self._batches, self._teacher = batches, teacher

    def epoch(self, step: int) -> int:
        """The epoch of the first row of the step's batch."""
        return self._batches.epoch(step)

    def row_ids(self, step: int) -> Int64Array:
        """Rows of the global batch."""
        return self._batches.row_ids(step)

    def loss_terms(self, step: int) -> int:
        """Terms of the mean loss in the global batch."""
        return self._batches.loss_terms(step)

    def global_tokens(self, step: int) -> int:
        """Tokens of the global batch."""
        return self._batches.global_tokens(step)

    def micro_batches(self, step: int) -> Iterator[Inputs]:
        """This rank's micro-batches."""
        for micro_batch in self._batches.micro_batches(step):
            yield _Taught(micro_batch, self._teacher)


class _Taught:
    """A micro-batch and the teacher's logits for it, computed when they are needed."""

    def __init__(self, inputs: Inputs, teacher: Teacher) -> None:
        self._inputs, self._teacher = inputs, teacher

    @torch.no_grad()
    def to(self, device: torch.device) -> dict[str, Any]:
        """The arguments of the student's forward."""
        inputs = self._inputs.to(device)
        return {**inputs, "teacher_logits": self._teacher.compute_logits(**inputs)}


def load_teacher(module: nn.Module, source: Path, *, device: torch.device, precision: str) -> None:
    """Give `module` the weights of a teacher that the driver has opened, fixed, without dropout.

    Raises:
        BadInput: the source lacks a weight or has another size: it was trained for something else.
    """
    weights = read_verified(source).weights
    with torch.no_grad():
        for name, parameter in named_weights(module):
            if name not in weights or weights[name].numel() != parameter.numel():
                raise BadInput(
                    f"distillation.teacher: {source} has no {name} of {parameter.numel()} weights: "
                    "give a model that was trained for the same"
                )
            parameter.copy_(weights[name].view(parameter.shape))
    module.requires_grad_(False).eval()
    module.to(device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
