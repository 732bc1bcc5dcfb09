from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from bert.masked_loss import sum_cross_entropy

HIDDEN, VOCAB_SIZE, CHUNK_ROWS = 24, 1000, 8
# Relative to the largest element, against torch in float64 on the same numbers. fp32: sums in
# another order, seen 8e-7, torch's own head 7e-7. bf16: logits and their gradient are rounded to
# its 8 bits; seen 0.014, torch's own bf16 head 0.016.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-5}


class Outcome(NamedTuple):
    loss: torch.Tensor
    gradients: tuple[torch.Tensor, ...]


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def build_inputs(masked: int, dtype: torch.dtype = torch.float32, *, scale: float = 1.0) -> Inputs:
    """hidden, weight, bias and labels; every fifth label is to be ignored."""
    generator = torch.Generator().manual_seed(masked)
    hidden = torch.randn(masked, HIDDEN, generator=generator) * scale
    weight = torch.randn(VOCAB_SIZE, HIDDEN, generator=generator)
    bias = torch.randn(VOCAB_SIZE, generator=generator)
    labels = torch.randint(0, VOCAB_SIZE, (masked,), generator=generator)
    labels[4::5] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels


def chunked(inputs: Inputs, divisor: float = 1.0) -> Outcome:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs[:3]]
    loss = sum_cross_entropy(*leaves, inputs[3], ignore_index=-100) / divisor
    return Outcome(loss.detach(), torch.autograd.grad(loss, leaves))


def reference(inputs: Inputs, divisor: float = 1.0) -> Outcome:
    """Torch's own loss on the same numbers, in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in inputs[:3]]
    total = cross_entropy(linear(*leaves), inputs[3], ignore_index=-100, reduction="sum")
    loss = total / divisor
    return Outcome(loss.detach(), torch.autograd.grad(loss, leaves))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert.masked_loss._CPU_CHUNK_BYTES", 4 * VOCAB_SIZE * CHUNK_ROWS)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("masked", [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 61])
@pytest.mark.parametrize("divisor", [1.0, 61.0])
def test_loss_and_gradients_equal_torch(masked: int, dtype: torch.dtype, divisor: float) -> None:
    inputs = build_inputs(masked, dtype)
    actual, expected = chunked(inputs, divisor), reference(inputs, divisor)
    assert actual.loss.dtype == torch.float32 and actual.loss.shape == ()
    assert relative_error(actual.loss, expected.loss) <= BOUNDS[dtype]
    for tensor, gradient, want in zip(
        inputs[:3], actual.gradients, expected.gradients, strict=True
    ):
        assert gradient.dtype == dtype and gradient.shape == tensor.shape
        assert relative_error(gradient, want) <= BOUNDS[dtype]


@pytest.mark.parametrize("masked", [0, CHUNK_ROWS + 1])
def test_without_a_label_all_is_zero(masked: int) -> None:
    hidden, weight, bias, _ = build_inputs(masked)
    labels = torch.full((masked,), -100)
    loss, gradients = chunked((hidden, weight, bias, labels))
    assert loss == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_large_logits_do_not_overflow() -> None:
    inputs = build_inputs(20, scale=1e4)
    actual, expected = chunked(inputs), reference(inputs)
    assert relative_error(actual.loss, expected.loss) <= 1e-6
    assert all(torch.isfinite(gradient).all() for gradient in actual.gradients)


def test_a_weight_that_is_not_finite_shows_in_the_loss_and_every_gradient() -> None:
    """Training finds out from the gradient norm that a step must be skipped."""
    inputs = build_inputs(20)
    inputs[1][7, 3] = float("nan")
    loss, gradients = chunked(inputs)
    assert not torch.isfinite(loss)
    assert not any(torch.isfinite(gradient).all() for gradient in gradients)


def test_without_gradients_the_loss_is_the_same() -> None:
    inputs = build_inputs(20)
    with torch.no_grad():
        loss = sum_cross_entropy(*inputs, ignore_index=-100)
    assert loss == chunked(inputs).loss and not loss.requires_grad


def test_the_labels_decide_in_which_rows_a_gradient_flows() -> None:
    inputs = build_inputs(20)
    of_hidden = chunked(inputs).gradients[0]
    assert torch.equal((of_hidden != 0).any(dim=1), inputs[3] != -100)
