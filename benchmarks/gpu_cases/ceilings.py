"""What the card gives at most: memory, matrix products of BERT's shapes, attention."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any


def median_ms(work: Callable[[], Any], *, device: str, repeats: int = 10) -> float:
    """Milliseconds of `work`, by the device's own clock where it has one."""
    import torch

    times = []
    for repeat in range(3 + repeats):
        if device == "cuda":
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started.record()
            work()
            ended.record()
            ended.synchronize()
            milliseconds = started.elapsed_time(ended)
        else:
            began = time.perf_counter()
            work()
            milliseconds = 1e3 * (time.perf_counter() - began)
        if repeat >= 3:  # the first three warm up
            times.append(milliseconds)
    return statistics.median(times)


def ceilings(*, device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """TB/s of a copy, and TFLOP/s of the products in a layer of BERT-base, in bf16."""
    import torch

    source = torch.ones(1 << (16 if smoke else 31), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    milliseconds = median_ms(functools.partial(target.copy_, source), device=device)
    yield {"copy TB/s": 2 * source.numel() / milliseconds / 1e9}
    del source, target
    rows = 64 if smoke else 131_072  # tokens: 256 rows of 512
    products = {"8192^3": (8192, 8192, 8192)}
    for name, (inputs, outputs) in {
        "projection": (768, 768),
        "all of q, k, v": (768, 2304),
        "up": (768, 3072),
        "down": (3072, 768),
    }.items():
        products[name] = (rows, inputs, outputs)
        products[f"{name}, weight's gradient"] = (inputs, rows, outputs)
    for name, (m, k, n) in products.items():
        m, k, n = (min(size, 64) for size in (m, k, n)) if smoke else (m, k, n)
        # The gradient of a weight reads its first factor transposed, as autograd does.
        left = torch.randn(k, m, device=device, dtype=torch.bfloat16).t()
        if "gradient" not in name:
            left = left.contiguous()
        right = torch.randn(k, n, device=device, dtype=torch.bfloat16)
        milliseconds = median_ms(functools.partial(torch.mm, left, right), device=device)
        yield {f"{name} TFLOP/s": 2 * m * k * n / milliseconds / 1e9}


def attention(*, device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of a layer's attention, forward and backward, beside torch's kernels.

    Ours confines tokens to their segments; the others take whole rows and serve as the ceiling.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from benchmarks.bert_step import build_batch
    from bert.attention import build_block_mask, packed_attention, uses_varlen

    rows, row_tokens, heads, head_dim = (2, 32, 2, 16) if smoke else (64, 512, 12, 64)
    shape = (rows, heads, row_tokens, head_dim)
    query, key, value = (
        torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    batch = build_batch(device, rows=rows, row_tokens=row_tokens)
    bounds = batch["cu_seqlens"]
    mask = None
    if not uses_varlen(query.device, dtype=query.dtype, head_dim=head_dim):
        mask = build_block_mask(bounds, rows=rows, row_tokens=row_tokens)

    def ours() -> torch.Tensor:
        output, _ = packed_attention(
            torch.nn.Module(),
            query,
            key,
            value,
            mask,
            cu_seq_lens_q=bounds,
            max_length_q=batch["max_seqlen"],
        )
        return output

    def dense(backend: SDPBackend) -> Callable[[], torch.Tensor]:
        def attend() -> torch.Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, key, value).transpose(1, 2)

        return attend

    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    if device == "cpu":
        kernels = {"math": SDPBackend.MATH}
    variants = {"ours": ours, **{f"whole rows, {n}": dense(b) for n, b in kernels.items()}}
    gradient = torch.randn(rows, row_tokens, heads, head_dim, device=device).to(torch.bfloat16)

    def backward(output: torch.Tensor) -> Any:
        return torch.autograd.grad(output, (query, key, value), gradient)

    for name, attend in variants.items():
        try:
            forward = median_ms(attend, device=device)
            both = median_ms(lambda f=attend: backward(f()), device=device)
        except RuntimeError as error:  # this torch or card does not have the kernel
            if name == "ours":
                raise
            yield {name: f"not available: {str(error).splitlines()[0][:80]}"}
            continue
        yield {f"{name}, forward ms": forward, f"{name}, backward ms": both - forward}
