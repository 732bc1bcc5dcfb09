import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertForMaskedLM, BertModel

import bert.attention
from bert.attention import (
    PACKED_ATTENTION,
    build_block_mask,
    check_attention_dropout,
    check_boundaries,
    packed_attention,
    uses_varlen,
)
from bert.model import PretrainingModel
from distributed.errors import BadInput

ROW_TOKENS = 12
# fp32 sums in another order; outputs and gradients are of order 1. Seen: 1.2e-6.
FUNCTION_BOUND = 5e-6
# Two layers and two LayerNorms each on top of it, relative to the largest element. Seen: 1.3e-6.
MODEL_BOUND = 1e-5

# One row is a composition of ROW_TOKENS: the set of its inner borders.
rows_of_segments = st.lists(
    st.sets(st.integers(1, ROW_TOKENS - 1)).map(
        lambda borders: torch.tensor([0, *sorted(borders), ROW_TOKENS]).diff().tolist()
    ),
    min_size=1,
    max_size=3,
)


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def attend(query, key, value, cu_seqlens, max_seqlen):
    rows, _, row_tokens, _ = query.shape
    mask = build_block_mask(cu_seqlens, rows=rows, row_tokens=row_tokens)
    return packed_attention(
        torch.nn.Module(),
        query,
        key,
        value,
        mask,
        cu_seq_lens_q=cu_seqlens,
        max_length_q=max_seqlen,
    )[0]


def attend_alone(query, key, value, lengths):
    """Each segment by itself: [R, N, T, H] -> [R, T, N, H]."""
    rows, num_heads, row_tokens, head_dim = query.shape
    flat = (x.transpose(1, 2).reshape(-1, num_heads, head_dim) for x in (query, key, value))
    parts = zip(*(x.split(lengths) for x in flat), strict=True)
    alone = [
        scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)).transpose(0, 1)
        for part in parts
    ]
    return torch.cat(alone).view(rows, row_tokens, num_heads, head_dim)


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_segments, seed=st.integers(0, 1000))
def test_equals_attention_on_each_segment_alone(rows: list[list[int]], seed: int) -> None:
    lengths = [length for row in rows for length in row]
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(3, len(rows), 2, ROW_TOKENS, 8, generator=generator)
    weight = torch.randn(len(rows), ROW_TOKENS, 2, 8, generator=generator)
    together, alone = heads.clone().requires_grad_(), heads.clone().requires_grad_()

    packed = attend(*together, boundaries(lengths), max(lengths))
    expected = attend_alone(*alone, lengths)
    (packed * weight).sum().backward()
    (expected * weight).sum().backward()

    torch.testing.assert_close(packed, expected, rtol=0, atol=FUNCTION_BOUND)
    torch.testing.assert_close(together.grad, alone.grad, rtol=0, atol=FUNCTION_BOUND)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=rows_of_segments, seed=st.integers(0, 1000))
def test_model_equals_plain_bert_on_each_segment_alone(
    rows: list[list[int]], seed: int, build_tiny: Callable[..., PretrainingModel]
) -> None:
    lengths = [length for row in rows for length in row]
    model, plain = build_tiny(), build_plain(build_tiny())
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 31, (len(rows), ROW_TOKENS), generator=generator)
    weight = torch.randn(len(rows) * ROW_TOKENS, 16, generator=generator)

    packed = model._encode(
        input_ids,
        position_ids=positions(lengths).view_as(input_ids),
        cu_seqlens=boundaries(lengths),
        max_seqlen=max(lengths),
    ).flatten(0, 1)
    # No position ids here: a segment alone begins at position 0.
    alone = torch.cat(
        [plain(ids[None]).last_hidden_state[0] for ids in input_ids.flatten().split(lengths)]
    )
    assert_close_relative(packed, alone)

    (packed * weight).sum().backward()
    (alone * weight).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.mlm.bert.named_parameters():
        if "key.bias" not in name:  # exactly 0 in theory: softmax does not see a shift of the keys
            assert_close_relative(parameter.grad, expected[name].grad)


def build_plain(model: PretrainingModel) -> BertModel:
    config = model.mlm.config.__class__(**model.mlm.config.to_diff_dict())
    config._attn_implementation = "eager"
    plain = BertForMaskedLM(config)
    plain.load_state_dict(model.mlm.state_dict())
    assert plain.bert.config._attn_implementation == "eager"
    return plain.bert


def assert_close_relative(actual: torch.Tensor, expected: torch.Tensor) -> None:
    atol = MODEL_BOUND * expected.detach().abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_tokens_of_one_segment_do_not_touch_another(
    build_tiny: Callable[..., PretrainingModel],
) -> None:
    model = build_tiny().eval()
    lengths = [5, 4, 3]
    call = {
        "position_ids": positions(lengths)[None],
        "cu_seqlens": boundaries(lengths),
        "max_seqlen": 5,
    }
    input_ids = torch.arange(5, 17)[None]
    changed = input_ids.clone()
    changed[0, 6] = 30
    before, after = model._encode(input_ids, **call), model._encode(changed, **call)
    touched = (before != after).any(dim=-1)[0]
    assert touched.tolist() == [False] * 5 + [True] * 4 + [False] * 3


def test_position_ids_restart(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny().eval()
    segment = torch.arange(5, 11)
    input_ids = torch.cat([segment, segment])[None]
    call = {"cu_seqlens": boundaries([6, 6]), "max_seqlen": 6}
    hidden = model._encode(input_ids, position_ids=positions([6, 6])[None], **call)[0]
    torch.testing.assert_close(hidden[:6], hidden[6:], rtol=0, atol=1e-5)
    running = model._encode(input_ids, position_ids=torch.arange(12)[None], **call)[0]
    assert not torch.allclose(running[:6], running[6:], atol=1e-2)


@pytest.mark.parametrize(
    ("lengths", "rows"), [([6, 6], 2), ([4, 2, 6], 2), ([2, 2, 2, 3, 3], 2), ([6], 1)]
)
def test_block_mask(lengths: list[int], rows: int) -> None:
    mask = build_block_mask(boundaries(lengths), rows=rows, row_tokens=6)
    blocks = torch.block_diag(*(torch.ones(length, length) for length in lengths)).bool()
    expected = torch.stack([blocks[6 * row :, 6 * row :][:6, :6] for row in range(rows)])[:, None]
    if len(lengths) == rows:
        assert mask is None  # every row is one segment: the mask would be all true
        assert expected.all()
    else:
        assert torch.equal(mask, expected)


def test_one_segment_a_row_without_a_mask_equals_the_masked_path() -> None:
    query, key, value = torch.randn(3, 2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    call = {"cu_seq_lens_q": boundaries([6, 6]), "max_length_q": 6}
    all_true = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    fast, _ = packed_attention(torch.nn.Module(), query, key, value, None, **call)
    masked, _ = packed_attention(torch.nn.Module(), query, key, value, all_true, **call)
    torch.testing.assert_close(fast, masked, rtol=0, atol=FUNCTION_BOUND)


def test_segments_of_one_token_return_the_value() -> None:
    heads = torch.randn(3, 2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    heads.requires_grad_()
    output = attend(*heads, torch.arange(13, dtype=torch.int32), 1)
    assert torch.equal(output, heads[2].transpose(1, 2))
    output.sum().backward()
    assert torch.equal(heads.grad[:2], torch.zeros_like(heads.grad[:2]))


def test_bf16_on_the_cpu_is_rounded_once() -> None:
    heads = torch.randn(3, 2, 2, ROW_TOKENS, 8, generator=torch.Generator().manual_seed(0))
    heads = heads.bfloat16()
    lengths = [5, 7, 1, 11]
    output = attend(*heads, boundaries(lengths), 11)
    expected = attend(*heads.float(), boundaries(lengths), 11)
    assert torch.equal(output, expected.bfloat16())


def test_varlen_path_flattens_and_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's branch on the CPU, with a plain loop in the place of the kernel."""

    def varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale):
        assert query.shape == (24, 2, 8) and max_q == max_k == 11 and torch.equal(cu_q, cu_k)
        lengths = cu_q.diff().tolist()
        parts = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        return torch.cat(
            [
                torch.einsum(
                    "nqk,knh->qnh", (torch.einsum("qnh,knh->nqk", q, k) * scale).softmax(-1), v
                )
                for q, k, v in parts
            ]
        )

    monkeypatch.setattr(bert.attention, "uses_varlen", lambda *_, **__: True)
    monkeypatch.setattr(bert.attention, "varlen_attn", varlen)
    heads = torch.randn(3, 2, 2, ROW_TOKENS, 8, generator=torch.Generator().manual_seed(0))
    lengths = [5, 7, 1, 11]
    call = {"cu_seq_lens_q": boundaries(lengths), "max_length_q": 11, "scaling": 1 / math.sqrt(8)}
    output, _ = packed_attention(torch.nn.Module(), *heads, None, **call)
    torch.testing.assert_close(output, attend_alone(*heads, lengths), rtol=0, atol=FUNCTION_BOUND)
    with pytest.raises(BadInput, match=r"train\.attention_dropout"):
        packed_attention(torch.nn.Module(), *heads, None, dropout=0.1, **call)


def test_only_16_bit_on_cuda_uses_varlen() -> None:
    cuda = torch.device("cuda")
    assert not uses_varlen(torch.device("cpu"), dtype=torch.bfloat16, head_dim=64)
    assert not uses_varlen(cuda, dtype=torch.float32, head_dim=64)
    assert not uses_varlen(cuda, dtype=torch.bfloat16, head_dim=12)


def test_attention_dropout_is_refused_on_the_varlen_path_only() -> None:
    check_attention_dropout(0.1, varlen=False)
    check_attention_dropout(0.0, varlen=True)
    with pytest.raises(BadInput, match=r"train\.attention_dropout to 0 \(it is 0\.1\)"):
        check_attention_dropout(0.1, varlen=True)


def test_missing_boundaries_are_refused(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny().mlm
    assert model.config._attn_implementation == PACKED_ATTENTION
    with pytest.raises(ValueError, match="without segment boundaries"):
        model(torch.ones(1, 6, dtype=torch.long))


def test_a_padding_mask_is_never_dropped(build_tiny: Callable[..., PretrainingModel]) -> None:
    """Registered for attention alone, transformers would turn this mask into None and go on."""
    model = build_tiny().mlm
    input_ids = torch.ones(1, 6, dtype=torch.long)
    padding_mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    call = {"cu_seq_lens_q": boundaries([6]), "max_length_q": 6}
    with pytest.raises(ValueError, match="does not take a 2-D padding mask"):
        model(input_ids, attention_mask=padding_mask, **call)
    model(input_ids, **call)


@pytest.mark.parametrize(
    "mask", [None, torch.zeros(1, 1, 6, 6), torch.ones(1, 2, 6, 6, dtype=torch.bool)]
)
def test_a_mask_of_another_kind_is_refused(
    mask: torch.Tensor | None, build_tiny: Callable[..., PretrainingModel]
) -> None:
    call = {"cu_seq_lens_q": boundaries([2, 4]), "max_length_q": 4}
    with pytest.raises(ValueError, match="build_block_mask"):
        build_tiny().mlm(torch.ones(1, 6, dtype=torch.long), attention_mask=mask, **call)


@pytest.mark.parametrize(
    ("cu_seqlens", "max_seqlen", "complaint"),
    [
        ([0, 6], 6, "tile"),  # the second row is missing
        ([1, 6, 12], 6, "tile"),
        ([0, 4, 8, 12], 4, "tile"),  # a segment crosses from row 0 to row 1
        ([0, 6, 13], 7, "tile"),
        ([0, 6, 3, 12], 9, "tile"),
        ([0, 6, 12], 5, "max_seqlen"),
    ],
)
def test_wrong_boundaries_are_refused(
    cu_seqlens: list[int], max_seqlen: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_boundaries(
            torch.tensor(cu_seqlens, dtype=torch.int32),
            max_seqlen=max_seqlen,
            rows=2,
            row_tokens=6,
        )


def test_right_boundaries_pass() -> None:
    for lengths in ([6, 6], [1, 5, 6], [1] * 12, [6, 0, 6]):
        check_boundaries(boundaries(lengths), max_seqlen=6, rows=2, row_tokens=6)
