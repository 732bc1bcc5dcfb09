"""The kernel's numbers, against torch's dense encoder in float64 and fp32."""

import resource
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertModel

from sparsebert.inference.convert import check_encoder
from sparsebert.inference.encoder_op import prepare_mask
from sparsebert.inference.library import Kernel
from sparsebert.inference.packing import pack
from tests.unit.sparsebert.inference.models import assert_as_exact, build, double

Mask = torch.Tensor | None


def pack_bert(bert: BertModel) -> torch.Tensor:
    state = {name: tensor.detach() for name, tensor in bert.encoder.state_dict().items()}
    return pack(check_encoder(bert), lambda layer, name: state[f"layer.{layer}.{name}"])


def dense(bert: Any, x: torch.Tensor, mask: Mask) -> torch.Tensor:
    """BertEncoder's own output; `mask` is added to the scores or, if bool, tells who attends."""
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(x.dtype)
    with torch.no_grad():
        output: torch.Tensor = bert.encoder(x, attention_mask=mask).last_hidden_state
    return output


def check(
    kernel: Kernel, bert: BertModel, x: torch.Tensor, mask: Mask = None, threads: int = 1
) -> None:
    heads = bert.config.num_attention_heads
    added = None if mask is None else prepare_mask(mask, x.shape[0], x.shape[1], heads)
    found = kernel.encode(x, added, pack_bert(bert), threads)
    kept = computed(mask, *x.shape[:2])
    exact, own = dense(double(bert), x.double(), mask), dense(bert, x, mask)
    assert_as_exact(found[kept], exact[kept], own[kept])
    assert (found[~kept] == 0).all()


def computed(mask: Mask, batch: int, length: int) -> torch.Tensor:
    """Tokens [B, S] whose output is computed: those that some query attends to."""
    kept = torch.ones(batch, length, dtype=torch.bool)
    if mask is None:
        return kept
    whole = mask.expand(batch, mask.shape[1], length, length)
    row = whole[:, 0, 0]
    if not torch.equal(whole, row[:, None, None].expand_as(whole)):
        return kept
    kept = row.clone() if mask.dtype == torch.bool else row > -1e38
    kept[~kept.any(1)] = True  # a sequence without any is computed as torch does
    return kept


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 128, 200, 512])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_length(kernel: Kernel, batch: int, length: int) -> None:
    bert = build()
    check(kernel, bert, draw(batch, length, 48))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", range(1, 10))
def test_every_batch_on_several_threads(kernel: Kernel, batch: int, threads: int) -> None:
    check(kernel, build(), draw(batch, 37, 48), threads=threads)
    check(kernel, build(), draw(batch, 5, 48), threads=threads)


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 16, 64, 130, 300])
def test_one_long_sequence_on_several_threads(kernel: Kernel, length: int, threads: int) -> None:
    check(kernel, build(), draw(1, length, 48), threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_threads_change_no_bit(kernel: Kernel, threads: int) -> None:
    """A sum's order is the same whoever computes it."""
    packed, x = pack_bert(build()), draw(4, 64, 48)
    assert torch.equal(kernel.encode(x, None, packed, threads), kernel.encode(x, None, packed, 1))


@pytest.mark.parametrize(
    ("hidden", "inner", "heads"),
    [
        (1, 1, 1),
        (7, 13, 7),
        (30, 50, 3),
        (65, 129, 5),
        (96, 384, 2),
        (200, 777, 8),
        (768, 3072, 12),
    ],
)
def test_odd_sizes(kernel: Kernel, hidden: int, inner: int, heads: int) -> None:
    layers = 1 if hidden > 500 else 3
    bert = build(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=layers,
    )
    check(kernel, bert, draw(2, 21, hidden))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.9, 1.0])
def test_every_density(kernel: Kernel, density: float) -> None:
    check(kernel, build(density=density, hidden_size=220, intermediate_size=400), draw(2, 40, 220))


def test_empty_rows_and_columns(kernel: Kernel) -> None:
    bert = build(density=0.3, hidden_size=220, intermediate_size=400)
    with torch.no_grad():
        for weight in bert.encoder.parameters():
            if weight.dim() == 2:
                weight[::3] = 0.0
                weight[:, 1::4] = 0.0
                weight[:, 192:] = 0.0  # a whole block of inputs
    check(kernel, bert, draw(2, 40, 220))


def test_without_layers_the_output_is_the_input(kernel: Kernel) -> None:
    x = draw(2, 9, 48)
    assert torch.equal(kernel.encode(x, None, pack_bert(build(num_hidden_layers=0)), 1), x)


def test_no_sequences(kernel: Kernel) -> None:
    assert kernel.encode(draw(0, 9, 48), None, pack_bert(build()), 2).shape == (0, 9, 48)


# Masks

LENGTH = 41
KEPT = torch.arange(LENGTH) < torch.tensor([[41], [17], [1]])  # [3, S]: lengths of a padded batch
MASKS: dict[str, Callable[[], torch.Tensor]] = {
    "bool, repeated over the queries": lambda: KEPT[:, None, None].expand(3, 1, LENGTH, LENGTH),
    "bool, stored": lambda: KEPT[:, None, None].expand(3, 1, LENGTH, LENGTH).contiguous(),
    "bool, one row": lambda: KEPT[:, None, None],
    "bool, by query": lambda: torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool).tril(),
    "bool, by head": lambda: torch.rand(3, 4, LENGTH, LENGTH).gt(0.3) | torch.eye(LENGTH).bool(),
    "lowest float": lambda: (~KEPT)[:, None, None].float() * torch.finfo(torch.float32).min,
    "minus infinity": lambda: torch.zeros(3, 1, 1, LENGTH).masked_fill(
        ~KEPT[:, None, None], -torch.inf
    ),
    "biases by query": lambda: draw(3, 1, LENGTH, LENGTH),
    "one bias for all": lambda: draw(1, 1, LENGTH, LENGTH),
    "transposed": lambda: draw(3, 1, LENGTH, LENGTH).transpose(2, 3),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_masks(kernel: Kernel, form: str, threads: int) -> None:
    torch.manual_seed(0)
    check(kernel, build(), draw(3, LENGTH, 48), MASKS[form](), threads)


def test_a_mask_of_tokens_is_the_same_mask(kernel: Kernel) -> None:
    packed, x = pack_bert(build()), draw(3, LENGTH, 48)

    def run(mask: torch.Tensor) -> torch.Tensor:
        return kernel.encode(x, prepare_mask(mask, 3, LENGTH, 4), packed, 1)

    wanted = run(MASKS["bool, stored"]())
    for mask in (KEPT, KEPT.long(), KEPT.to(torch.uint8)):
        assert torch.equal(run(mask), wanted)
    assert torch.equal(run(torch.zeros(3, LENGTH).masked_fill(~KEPT, -torch.inf)), wanted)


def test_repeated_rows_are_not_copied() -> None:
    mask = prepare_mask(KEPT[:, None, None].expand(3, 1, LENGTH, LENGTH), 3, LENGTH, 4)
    assert mask.stride(2) == 0 and mask.untyped_storage().nbytes() == 3 * LENGTH * 4


@pytest.mark.parametrize("form", ["bool", "minus infinity", "lowest float"])
def test_fully_masked_rows_are_as_torch_gives_them(kernel: Kernel, form: str) -> None:
    keep = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    keep[0, 0, 5] = False  # one query sees nothing
    keep[1] = False  # a whole sequence sees nothing
    lowest = -torch.inf if form == "minus infinity" else torch.finfo(torch.float32).min
    mask = keep if form == "bool" else torch.zeros(keep.shape).masked_fill(~keep, lowest)
    bert = build(attn_implementation="sdpa")
    x = draw(2, LENGTH, 48)
    found = kernel.encode(x, prepare_mask(mask, 2, LENGTH, 4), pack_bert(bert), 1)
    wanted = dense(bert, x, mask)
    assert found.isfinite().all() and wanted.isfinite().all()
    assert (found - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("where", ["right", "left", "between"])
def test_padding_is_not_computed(kernel: Kernel, threads: int, where: str) -> None:
    """A batch of mixed lengths gives, bit for bit, what its sequences give alone."""
    lengths = [50, 3, 64, 1, 130, 77, 20]
    batch, width = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(0)
    keep = torch.zeros(batch, width, dtype=torch.bool)
    for row, length in zip(keep, lengths, strict=True):
        if where == "between":
            row[torch.randperm(width, generator=generator)[:length]] = True
        else:
            row[:length] = True
    if where == "left":
        keep = keep.flip(1)
    packed, x = pack_bert(build()), draw(batch, width, 48)
    added = prepare_mask(keep, batch, width, 4)
    x[~keep] = float("nan")  # nobody looks at them
    found = kernel.encode(x, added, packed, threads)
    for row, kept, output in zip(x, keep, found, strict=True):
        assert torch.equal(output[kept], kernel.encode(row[kept][None], None, packed, 1)[0])
        assert (output[~kept] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_what_is_not_finite_spreads_as_in_torch(
    kernel: Kernel, value: float, density: float
) -> None:
    bert = build(density=density, attn_implementation="eager", num_hidden_layers=1)
    x = draw(3, 20, 48)
    x[1, 4, 7] = value
    found = kernel.encode(x, None, pack_bert(bert), 1)
    wanted = dense(bert, x, None)
    assert torch.equal(found.isnan(), wanted.isnan()) and found[1].isnan().all()
    assert (found[[0, 2]] - wanted[[0, 2]]).abs().max() < 2e-5


def test_large_scores_do_not_overflow(kernel: Kernel) -> None:
    bert = build(density=0.5)
    check(kernel, bert, 40 * draw(2, 30, 48))


@pytest.mark.parametrize("size", [1e5, 1e10, 1e15])
def test_one_huge_token(kernel: Kernel, size: float) -> None:
    """Its scores have no bits behind the point: a difference of two of them must not be rounded."""
    x = draw(2, 20, 48)
    x[:, 5] *= size
    assert kernel.encode(x, None, pack_bert(build(num_hidden_layers=1)), 1).isfinite().all()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_and_mask(kernel: Kernel, data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 5), label="heads")
    hidden = heads * data.draw(st.integers(1, 30), label="features of a head")
    batch, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 150))
    bert = build(
        density=data.draw(st.sampled_from([0.02, 0.1, 0.5])),
        hidden_size=hidden,
        intermediate_size=data.draw(st.integers(1, 300), label="inner"),
        num_attention_heads=heads,
        num_hidden_layers=data.draw(st.integers(1, 2)),
    )
    mask: Mask = None
    if data.draw(st.booleans(), label="masked"):
        torch.manual_seed(data.draw(st.integers(0, 99)))
        queries = data.draw(st.sampled_from([1, length]))
        mask = torch.rand(batch, 1, queries, length) < 0.7
        mask[..., 0] = True
    check(
        kernel,
        bert,
        draw(batch, length, hidden),
        mask,
        data.draw(st.integers(1, 4), label="threads"),
    )


# Calls


def test_two_models_in_two_threads(kernel: Kernel) -> None:
    """One of them has the pool, the other works alone."""
    models = [build(seed=1), build(seed=2, hidden_size=96)]
    packed = [pack_bert(bert) for bert in models]
    inputs = [draw(3, 50, 48), draw(5, 33, 96)]
    wanted = [kernel.encode(x, None, p, 1) for x, p in zip(inputs, packed, strict=True)]
    wrong = []

    def work(which: int) -> None:
        for _ in range(100):
            found = kernel.encode(inputs[which], None, packed[which], 2)
            # The pool may split a call otherwise than a caller alone does: tiles of other widths.
            if (found - wanted[which]).abs().max() > 1e-5:
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_a_thousand_calls_do_not_grow(kernel: Kernel) -> None:
    packed = pack_bert(build())
    inputs = [draw(batch, length, 48) for batch, length in ((1, 16), (4, 60), (9, 128), (2, 300))]
    for x in inputs:
        kernel.encode(x, None, packed, 2)
    before = resident_bytes()
    for call in range(1000):
        kernel.encode(inputs[call % 4], None, packed, 2)
    assert resident_bytes() - before < 4 << 20


def test_scratch_is_given_back(kernel: Kernel) -> None:
    kernel.release()
    kernel.encode(draw(1, 512, 48), None, pack_bert(build()), 1)
    assert kernel.release() >= 2 << 20
    assert kernel.release() == 0
