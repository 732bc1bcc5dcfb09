"""The chunked cross entropy on a GPU, against torch in float64 on the same numbers."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from bert.masked_loss import sum_cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MASKED, HIDDEN, VOCAB_SIZE = 500, 64, 30_522
# Relative to the largest element: fp32 sums in another order; bf16 has 8 bits (as on a CPU, see
# tests/unit/bert/test_masked_loss.py).
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2**-5}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_loss_and_gradients_equal_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert.masked_loss._ACCELERATOR_CHUNK_BYTES", 4 * VOCAB_SIZE * 64)
    torch.manual_seed(0)
    inputs = [
        torch.randn(MASKED, HIDDEN, device="cuda", dtype=dtype),
        torch.randn(VOCAB_SIZE, HIDDEN, device="cuda", dtype=dtype) * 0.2,
        torch.randn(VOCAB_SIZE, device="cuda", dtype=dtype),
    ]
    labels = torch.randint(0, VOCAB_SIZE, (MASKED,), device="cuda")
    labels[::7] = -100
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    loss = sum_cross_entropy(*ours, labels, ignore_index=-100) / MASKED
    want = cross_entropy(linear(*exact), labels, ignore_index=-100, reduction="sum") / MASKED
    pairs = [(loss, want)]
    pairs += zip(torch.autograd.grad(loss, ours), torch.autograd.grad(want, exact), strict=True)
    for actual, expected in pairs:
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error <= BOUNDS[dtype]
