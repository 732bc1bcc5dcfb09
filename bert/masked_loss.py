"""The cross entropy over the vocabulary, a few masked tokens at a time: no [M, V] tensor exists.

    hidden [M, D], weight [V, D], bias [V], labels [M] -> sum of the cross entropy, fp32

With 30,522 words the logits are by far the largest tensor of a step, and the usual way passes over
them six times: logits, log-softmax, and the same again backward. Here a chunk of logits stays in
the cache while it becomes the loss, then in place the gradient softmax(logits) - one_hot(label),
then its share of the gradients of `hidden`, `weight` and `bias`. The backward only scales them.
The idea is that of Liger's fused linear cross entropy (arXiv 2410.10989), here in plain torch.

Legend: M masked positions, D hidden, V vocabulary, C positions of a chunk.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Bytes of one chunk of fp32 logits: within a CPU core's share of the cache; on an accelerator
# enough rows for its matrix units.
_CPU_CHUNK_BYTES = 4 << 20
_ACCELERATOR_CHUNK_BYTES = 256 << 20


def sum_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int,
) -> torch.Tensor:
    """Sum of -ln softmax(hidden @ weight.T + bias)[label], in nats; 0 without a label.

    Args:
        hidden: fp32 or bf16 [M, D].
        weight: [V, D] in hidden's dtype.
        bias: [V] in hidden's dtype.
        labels: int64 [M]; rows whose label is `ignore_index` count for nothing.
        ignore_index: a negative number.

    Returns:
        A float32 scalar. Its gradients are summed over the chunks in fp32 and have the dtype of
        their tensors; logits are rounded to hidden's dtype, as `nn.Linear` does.
    """
    if not torch.is_grad_enabled():
        return _forward(hidden, weight, bias, labels, ignore_index=ignore_index)
    total: torch.Tensor = _SumCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch has no types here
        hidden, weight, bias, labels, ignore_index
    )
    return total


class _SumCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward, where the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        labels: torch.Tensor,
        ignore_index: int,
    ) -> torch.Tensor:
        gradients = tuple(
            torch.zeros_like(tensor, dtype=torch.float32) for tensor in (hidden, weight, bias)
        )
        total = _forward(
            hidden, weight, bias, labels, ignore_index=ignore_index, gradients=gradients
        )
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = (
            (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, bias, None, None


def _forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int,
    gradients: tuple[torch.Tensor, ...] | None = None,
) -> torch.Tensor:
    """The loss; adds its gradients to `gradients` (of hidden, weight and bias), all zero, fp32."""
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    is_label = labels != ignore_index
    rows = _chunk_rows(weight)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        counted = is_label[chunk, None]  # [C, 1]
        target = labels[chunk, None].clamp(min=0)  # [C, 1]
        logits = torch.addmm(bias, hidden[chunk], weight.t()).float()  # [C, V]
        logits -= logits.amax(dim=1, keepdim=True)
        at_target = logits.gather(1, target)  # [C, 1]
        exponentials = logits.exp_()
        norm = exponentials.sum(dim=1, keepdim=True)
        total += torch.where(counted, norm.log() - at_target, 0).sum()
        if gradients is None:
            continue
        difference = exponentials.mul_(counted / norm)  # softmax
        difference.scatter_add_(1, target, -counted.float())  # softmax - one_hot
        of_hidden, of_weight, of_bias = gradients
        of_bias += difference.sum(dim=0)
        if weight.dtype == torch.float32:
            torch.mm(difference, weight, out=of_hidden[chunk])
            of_weight.addmm_(difference.t(), hidden[chunk])
        else:
            rounded = difference.to(weight.dtype)
            of_hidden[chunk] = rounded @ weight
            of_weight += rounded.t() @ hidden[chunk]
    return total


def _chunk_rows(weight: torch.Tensor) -> int:
    vocab_size, hidden = weight.shape
    chunk_bytes = _CPU_CHUNK_BYTES if weight.device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
    # Each chunk reads and writes weight's gradient once: a wide model needs more rows for that.
    return max(1, hidden // 4, chunk_bytes // (4 * vocab_size))
