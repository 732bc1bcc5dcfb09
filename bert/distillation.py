"""Distillation: the student also learns from a dense teacher's logits, softened by a temperature.

    loss = (1 - hardness) * loss of the labels + hardness * T^2 * KL(teacher / T || student / T)

(arXiv 1503.02531; hardness as SparseML and Prune Once for All have it.) See teacher.py.
"""

import torch
from torch.nn.functional import kl_div, log_softmax, logsigmoid, sigmoid


def soft_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, present: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """T^2 * KL(teacher / T || student / T) over the last axis, summed where `present`.

    Args:
        student: fp32 [..., C].
        teacher: fp32 [..., C].
        present: bool [...].
        temperature: T.
    """
    divergence = kl_div(
        log_softmax(student / temperature, dim=-1),
        log_softmax(teacher / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    return (divergence * present).sum() * temperature**2


def soft_binary_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, present: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """The same for classes that apply independently, summed over them too; all [..., C]."""
    p = sigmoid(teacher / temperature)
    x, y = student / temperature, teacher / temperature
    divergence = p * (logsigmoid(y) - logsigmoid(x)) + (1 - p) * (logsigmoid(-y) - logsigmoid(-x))
    return (divergence * present).sum() * temperature**2


def mix(labels: torch.Tensor, teacher: torch.Tensor, hardness: float) -> torch.Tensor:
    """The two losses by `hardness`."""
    return (1 - hardness) * labels + hardness * teacher
