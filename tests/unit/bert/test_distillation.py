"""Distillation's losses against the formula on probabilities, and what learns from whom."""

import numpy as np
import pytest
import torch

from bert.config import DistillationConfig
from bert.distillation import mix, soft_binary_cross_entropy, soft_cross_entropy


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
def test_the_divergence(temperature: float) -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 7, 5, generator=draw)
    present = torch.tensor([True, False, True, True, False, True, True])
    p, q = (softmax(x.double().numpy() / temperature) for x in (teacher, student))
    want = temperature**2 * (p * np.log(p / q)).sum(-1)[present.numpy()].sum()
    got = soft_cross_entropy(student, teacher, present, temperature=temperature)
    assert float(got) == pytest.approx(want, rel=1e-5)

    p, q = (1 / (1 + np.exp(-x.double().numpy() / temperature)) for x in (teacher, student))
    terms = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    mask = present[:, None].expand(7, 5)
    got = soft_binary_cross_entropy(student, teacher, mask, temperature=temperature)
    assert float(got) == pytest.approx(temperature**2 * terms[present.numpy()].sum(), rel=1e-4)


def test_a_student_like_its_teacher_has_no_loss() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = soft_cross_entropy(logits, logits.detach(), torch.ones(3) > 0, temperature=2.0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6


def test_the_scale_of_the_gradient_is_that_of_the_labels() -> None:
    """T^2 undoes the 1/T^2 of the softened gradient (arXiv 1503.02531): at a high temperature it is
    the difference of the centred logits over the number of classes.
    """
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 1, 6, generator=draw).double()
    student.requires_grad_(True)
    soft_cross_entropy(student, teacher, torch.ones(1) > 0, temperature=1000.0).backward()
    difference = student.detach() - teacher
    want = (difference - difference.mean()) / 6
    torch.testing.assert_close(student.grad, want, rtol=1e-2, atol=1e-4)


def test_hardness() -> None:
    labels, teacher = torch.tensor(3.0), torch.tensor(7.0)
    assert [float(mix(labels, teacher, h)) for h in (0.0, 0.25, 1.0)] == [3.0, 4.0, 7.0]
    with pytest.raises(ValueError, match="hardness"):
        DistillationConfig(teacher="x", hardness=1.5)
