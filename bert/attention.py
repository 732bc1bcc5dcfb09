"""Packed attention: several segments in a row, and no token sees another segment.

Registered with transformers under one name, `PACKED_ATTENTION`, for attention and for masks alike:
a name that is registered for attention alone makes transformers drop a padding mask silently.
The boundaries arrive as keyword arguments of `BertModel.forward`, in the names that transformers
uses for its own flash attention:

    bert(input_ids, attention_mask=mask, cu_seq_lens_q=cu_seqlens, max_length_q=max_seqlen)

Three paths, one result:

    a segment is one token    the output is the value; softmax over one score is 1
    CUDA, bf16 or fp16        `varlen_attn` over the flattened tokens, without a mask
    elsewhere                 SDPA with a block-diagonal mask, built once a forward for all layers

Legend: R rows, T tokens a row, N heads, H head dim, S segments of all rows together.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from distributed.errors import BadInput

PACKED_ATTENTION = "sparsebert_packed"


def build_block_mask(
    cu_seqlens: torch.Tensor, *, rows: int, row_tokens: int
) -> torch.Tensor | None:
    """The mask that confines attention to segments: bool [R, 1, T, T], True = may attend.

    None where every row is one segment: nothing is masked then.

    Args:
        cu_seqlens: int [S + 1], where each segment begins in the flattened R * T tokens, and R * T.
            It covers every token, padding included, and every row begins a segment.
        rows: R.
        row_tokens: T.
    """
    if _is_one_segment_a_row(cu_seqlens, rows):
        return None
    token = torch.arange(rows * row_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    segment = torch.searchsorted(cu_seqlens, token, right=True).view(rows, 1, row_tokens)
    return segment.unsqueeze(-1) == segment.unsqueeze(-2)


def check_boundaries(
    cu_seqlens: torch.Tensor, *, max_seqlen: int, rows: int, row_tokens: int
) -> None:
    """Raise unless the segments tile every row and none is longer than `max_seqlen`.

    Only where `cu_seqlens` is on the CPU: on a GPU the check would wait for the device.
    """
    if cu_seqlens.device.type != "cpu":
        return
    row_borders = torch.arange(rows + 1, dtype=cu_seqlens.dtype) * row_tokens
    lengths = cu_seqlens.diff()
    covers = int(cu_seqlens[0]) == 0 and int(cu_seqlens[-1]) == rows * row_tokens
    if not covers or lengths.min() < 0 or not torch.isin(row_borders, cu_seqlens).all():
        raise ValueError(f"cu_seqlens does not tile {rows} rows of {row_tokens} tokens")
    if lengths.max() > max_seqlen:
        raise ValueError(f"a segment has {int(lengths.max())} tokens; max_seqlen says {max_seqlen}")


def uses_varlen(device: torch.device, *, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attention on this device in this precision runs through `varlen_attn`."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and _has_flash_attention(device)
    )


def check_attention_dropout(attention_dropout: float, *, varlen: bool) -> None:
    """Refuse attention dropout on the path that has none (`varlen`: see `uses_varlen`)."""
    if varlen and attention_dropout > 0:
        raise BadInput(
            f"set train.attention_dropout to 0 (it is {attention_dropout}): variable-length "
            f"attention on a GPU in 16-bit precision has no dropout"
        )


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within segments; the signature is transformers' AttentionInterface.

    Args:
        module: the BertSelfAttention that calls.
        query: [R, N, T, H], as are key and value.
        key: see query.
        value: see query.
        attention_mask: the mask of `build_block_mask`, or None where the path needs none.
        dropout: probability, already 0 outside training.
        scaling: factor on the scores.
        cu_seq_lens_q: int32 [S + 1], see `build_block_mask`.
        max_length_q: tokens of the longest segment.

    Returns:
        The output, [R, T, N, H], and no attention weights.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError(
            f"{PACKED_ATTENTION} attention was called without segment boundaries: give the model "
            f"cu_seq_lens_q and max_length_q, or set its attention implementation to sdpa"
        )
    rows, num_heads, row_tokens, head_dim = query.shape
    if max_length_q == 1:
        # The zero term gives query and key a gradient (of 0), so that every rank's ZeRO hooks run.
        return (value + 0.0 * (query + key)).transpose(1, 2), None
    if attention_mask is None and uses_varlen(query.device, dtype=query.dtype, head_dim=head_dim):
        check_attention_dropout(dropout, varlen=True)
        query, key, value = (
            heads.transpose(1, 2).reshape(rows * row_tokens, num_heads, head_dim)
            for heads in (query, key, value)
        )
        output = varlen_attn(
            query,
            key,
            value,
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
        )
        assert isinstance(output, torch.Tensor)
        return output.view(rows, row_tokens, num_heads, head_dim), None
    _check_block_mask(attention_mask, cu_seq_lens_q, rows=rows, row_tokens=row_tokens)
    # In bf16, SDPA on a CPU takes 4 to 6 times as long (measured: AVX2, torch 2.13).
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    output = scaled_dot_product_attention(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.to(query.dtype).transpose(1, 2), None


def refuse_padding_mask(*, attention_mask: torch.Tensor | None = None, **_: Any) -> None:
    """The mask function of `PACKED_ATTENTION`: transformers calls it for all but a 4-D mask.

    None is fine, for `packed_attention` then insists on boundaries; a padding mask is not.
    """
    if attention_mask is not None:
        raise ValueError(
            f"{PACKED_ATTENTION} attention does not take a {attention_mask.ndim}-D padding mask: "
            f"padding is a segment of its own in cu_seq_lens_q"
        )


def _check_block_mask(
    mask: torch.Tensor | None, cu_seqlens: torch.Tensor, *, rows: int, row_tokens: int
) -> None:
    if mask is None:
        if not _is_one_segment_a_row(cu_seqlens, rows):
            raise ValueError("attention over several segments a row needs build_block_mask's mask")
    elif mask.dtype != torch.bool or mask.shape != (rows, 1, row_tokens, row_tokens):
        raise ValueError(
            f"attention_mask is {mask.dtype} {list(mask.shape)}; build_block_mask makes bool "
            f"{[rows, 1, row_tokens, row_tokens]}"
        )


def _is_one_segment_a_row(cu_seqlens: torch.Tensor, rows: int) -> bool:
    # Every row begins a segment, so R segments can only be the R rows. No look at the values.
    return cu_seqlens.numel() == rows + 1


@cache
def _has_flash_attention(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, refuse_padding_mask)
