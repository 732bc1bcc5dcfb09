"""The MLM head's loss and gradients: bert/masked_loss.py beside torch's linear and cross_entropy.

python benchmarks/masked_loss.py

One thread, fp32, 30,522 words; both in turn, the best of 7. CPU seconds, so that other work on the
machine counts for little. "Held" is the memory that tensors take at most beyond the inputs.

Result (2026-11-23, torch 2 on one core of an x86-64 server, other work beside it):
    312 masked tokens of 64 dimensions: time 0.53 of torch's, held 16 MiB of torch's 109
    624 masked tokens of 64 dimensions: time 0.52 of torch's, held 16 MiB of torch's 218
    624 masked tokens of 768 dimensions: time 0.98 of torch's, held 183 MiB of torch's 218
"""

import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, linear
from torch.profiler import ProfilerActivity, profile

from bert.masked_loss import sum_cross_entropy

VOCAB_SIZE, REPEATS = 30_522, 7
Loss = Callable[..., torch.Tensor]


def torch_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    return cross_entropy(linear(hidden, weight, bias), labels, reduction="sum")


def chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    return sum_cross_entropy(hidden, weight, bias, labels, ignore_index=-100)


def run(loss: Loss, inputs: list[torch.Tensor]) -> float:
    """CPU seconds of one loss and its gradients."""
    start = time.process_time()
    torch.autograd.grad(loss(*inputs), inputs[:3])
    return time.process_time() - start


def held_bytes(loss: Loss, inputs: list[torch.Tensor]) -> int:
    """The most that was allocated at once during one run."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run(loss, inputs)
    held = most = 0
    assert profiled.profiler is not None  # it has run
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def main() -> None:
    torch.set_num_threads(1)
    for masked, hidden in ((312, 64), (624, 64), (624, 768)):
        inputs = [
            torch.randn(masked, hidden, requires_grad=True),
            (torch.randn(VOCAB_SIZE, hidden) * 0.05).requires_grad_(),
            torch.zeros(VOCAB_SIZE, requires_grad=True),
            torch.randint(0, VOCAB_SIZE, (masked,)),
        ]
        losses = (torch_loss, chunked_loss)
        seconds = [
            min(times)
            for times in zip(
                *((run(f, inputs) for f in losses) for _ in range(REPEATS)), strict=True
            )
        ]
        held = [held_bytes(f, inputs) for f in losses]
        print(
            f"{masked} masked tokens of {hidden} dimensions: "
            f"time {seconds[1] / seconds[0]:.2f} of torch's ({seconds[0] * 1e3:.0f} ms), "
            f"held {held[1] / 2**20:.0f} MiB of torch's {held[0] / 2**20:.0f}"
        )


if __name__ == "__main__":
    main()
