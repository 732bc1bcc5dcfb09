"""The GPU's variable-length kernel against the masked SDPA path, forward and backward.

The exact answer is masked SDPA in fp32. bf16 keeps 8 bits: rounding one element of order 1 is an
error of up to 2**-8.
"""

import pytest
import torch

from bert.architecture import named_weights
from bert.attention import build_block_mask, packed_attention, uses_varlen
from bert.config import ModelConfig
from bert.model import build_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LENGTHS = [100, 28, 1, 127, 128, 64, 33, 31]  # 4 rows of 128 tokens
ROWS, ROW_TOKENS = 4, 128
VOCAB_SIZE = 1000
BF16_STEP = 2.0**-8


def boundaries() -> torch.Tensor:
    return torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)


def attend(heads: torch.Tensor, *, masked: bool, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output [R, T, N, H] and gradients of query, key and value [3, R, N, T, H], in fp32."""
    heads = heads.detach().requires_grad_()
    cu_seqlens = boundaries()
    mask = build_block_mask(cu_seqlens, rows=ROWS, row_tokens=ROW_TOKENS) if masked else None
    output, _ = packed_attention(
        torch.nn.Module(),
        *heads,
        mask,
        cu_seq_lens_q=cu_seqlens,
        max_length_q=max(LENGTHS),
    )
    (output.float() * weight).sum().backward()
    assert heads.grad is not None
    return [output.detach().float(), heads.grad.float()]


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_varlen_equals_masked_sdpa(head_dim: int) -> None:
    assert uses_varlen(torch.device("cuda"), dtype=torch.bfloat16, head_dim=head_dim)
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (3, ROWS, 4, ROW_TOKENS, head_dim)
    heads = torch.randn(shape, generator=generator, device="cuda").bfloat16()
    weight = torch.randn(ROWS, ROW_TOKENS, 4, head_dim, generator=generator, device="cuda")
    exact = attend(heads.float(), masked=True, weight=weight)
    varlen = attend(heads, masked=False, weight=weight)
    masked = attend(heads, masked=True, weight=weight)
    for ours, theirs, truth in zip(varlen, masked, exact, strict=True):
        scale = truth.abs().max()
        assert (ours - truth).abs().max() <= 4 * BF16_STEP * scale
        assert (ours - theirs).abs().max() <= 4 * BF16_STEP * scale


def build_batch() -> dict[str, torch.Tensor | int | float]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCAB_SIZE, (ROWS, ROW_TOKENS), generator=generator)
    masked_positions = torch.randperm(ROWS * ROW_TOKENS, generator=generator)[:64]
    return {
        "input_ids": input_ids.cuda(),
        "position_ids": torch.cat([torch.arange(n) for n in LENGTHS]).view(ROWS, -1).cuda(),
        "cu_seqlens": boundaries(),
        "max_seqlen": max(LENGTHS),
        "masked_positions": masked_positions.cuda(),
        "labels": input_ids.flatten()[masked_positions].cuda(),
        "loss_divisor": 64,
    }


def train_once(*, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    config = ModelConfig(
        hidden_size=128, num_layers=2, num_heads=4, intermediate_size=512, vocab="unused"
    )
    model = build_model(
        config,
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        seed=1,
    )
    model.to(device="cuda", dtype=dtype)
    loss = model(**build_batch())
    loss.backward()
    return loss.detach(), {name: weight.grad.float() for name, weight in named_weights(model)}


def test_the_model_in_bf16_follows_fp32() -> None:
    """bf16 runs through varlen, fp32 through masked SDPA: one loss and one gradient."""
    exact_loss, exact = train_once(dtype=torch.float32)
    loss, gradients = train_once(dtype=torch.bfloat16)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact_loss, rtol=2 * BF16_STEP, atol=0)
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):  # 0 in theory: rounding only
            error = (gradient - exact[name]).norm() / exact[name].norm()
            assert error < 16 * BF16_STEP, (name, float(error))


def test_no_token_sees_another_segment() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    heads = torch.randn(3, ROWS, 4, ROW_TOKENS, 32, generator=generator, device="cuda").bfloat16()
    weight = torch.zeros(ROWS, ROW_TOKENS, 4, 32, device="cuda")
    weight[0, 100:] = 1  # the second segment alone
    gradient = attend(heads, masked=False, weight=weight)[1]
    touched = (gradient != 0).any(dim=-1).any(dim=2).any(dim=0)
    expected = torch.zeros(ROWS, ROW_TOKENS, dtype=torch.bool, device="cuda")
    expected[0, 100:] = True
    assert torch.equal(touched, expected)
