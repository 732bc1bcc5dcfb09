"""Masks bit for bit: what is kept keeps its bits, what is pruned becomes +0.0, whatever it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.checkpoint.reading import _unpack
from distributed.fragment import Fragment
from distributed.hashing import hex_digest, name_hash
from sparsity.patterns.single import SingleWeights
from sparsity.selection import masks
from sparsity.selection.masks import FragmentMask, apply_keep, join_runs, sum_modulo_2_64
from sparsity.selection.population import CHUNK
from sparsity.selection.threshold import Cut
from tests.unit.sparsity.oracle import expected_digest, position_hashes

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-45, 3.4e38, 1.5, -2.5]
LENGTHS = [0, 1, 7, 8, 9, 255, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 13]


def any_bits(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Values of any bit pattern, NaNs of every payload among them, the special ones first."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.iinfo(INTEGERS[dtype])
    bits = torch.randint(info.min, info.max, (n,), generator=generator, dtype=INTEGERS[dtype])
    special = torch.tensor(SPECIAL[:n]).to(dtype)
    bits[: special.numel()] = special.view(INTEGERS[dtype])
    return bits.view(dtype)


def any_keep(n: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator) < 0.5


def fragment(start: int, length: int, owned: tuple[int, int] | None = None) -> Fragment:
    owned_start, owned_stop = owned or (start, start + length)
    return Fragment("layer.weight", start, length, 0, 0, owned_start, owned_stop)


def mask_of(keep: torch.Tensor, where: Fragment | None = None) -> FragmentMask:
    mask = FragmentMask(where or fragment(0, keep.numel()), torch.device("cpu"))
    mask.load(keep)
    return mask


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("length", LENGTHS)
def test_apply_is_exact(dtype: torch.dtype, length: int) -> None:
    for flip in (False, True):  # so that every special value is kept once and pruned once
        values, keep = any_bits(length, dtype), any_keep(length) ^ flip
        before = values.view(INTEGERS[dtype]).clone()
        mask_of(keep).apply(values)
        after = values.view(INTEGERS[dtype])
        assert torch.equal(after[keep], before[keep])
        assert not after[~keep].any(), "all bits of a pruned weight are 0: it is +0.0"


def test_apply_works_in_place_on_a_view_and_nowhere_else() -> None:
    flat = torch.full((3 * CHUNK,), -0.0)
    keep = torch.zeros(CHUNK + 3, dtype=torch.int8)
    apply_keep(flat.narrow(0, 5, CHUNK + 3), keep)
    signs = flat.signbit()
    assert not signs[5 : CHUNK + 8].any()
    assert signs[:5].all() and signs[CHUNK + 8 :].all()


def test_a_new_mask_keeps_all() -> None:
    mask = FragmentMask(fragment(3, 100), torch.device("cpu"))
    values = any_bits(100, torch.float32)
    before = values.view(torch.int32).clone()
    mask.apply(values)
    assert torch.equal(values.view(torch.int32), before)
    assert mask.owned_digest() == (0, 0)


@settings(deadline=None)
@given(
    keep=st.lists(st.booleans(), max_size=70),
    begin=st.integers(0, 70),
    end=st.integers(0, 70),
    start=st.integers(0, 10**9),
)
def test_packing_round_trip(keep: list[bool], begin: int, end: int, start: int) -> None:
    """The owned part through the checkpoint's layout, wherever it begins and ends."""
    begin, end = sorted((min(begin, len(keep)), min(end, len(keep))))
    where = fragment(start, len(keep), (start + begin, start + end))
    packed = mask_of(torch.tensor(keep, dtype=torch.bool), where).pack()
    assert packed.dtype == torch.uint8 and packed.numel() == -(-(end - begin) // 8)
    assert _unpack(packed, end - begin).tolist() == keep[begin:end]


@pytest.mark.parametrize("length", LENGTHS)
def test_packing_long_masks(length: int) -> None:
    keep = any_keep(length)
    assert torch.equal(_unpack(mask_of(keep).pack(), length), keep)


def test_packing_layout() -> None:
    """The first weight is the highest bit of the first byte; files of old releases rely on it."""
    keep = torch.tensor([True, False, False, False, False, False, True, True, True, False])
    assert mask_of(keep).pack().tolist() == [0b10000011, 0b10000000]


def test_prune_counts_and_digests_what_this_rank_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replicated master: the mask covers all of it, the figures only the owned share."""
    monkeypatch.setattr("sparsity.selection.population.CHUNK", 16)
    master = torch.arange(50, dtype=torch.float32) * 0.125
    cut = Cut(int(torch.tensor([2.5]).view(torch.int32)))  # |w| <= 2.5: positions 0 to 20
    total, digest = 0, 0
    for owned in ((0, 7), (7, 19), (19, 19), (19, 50)):
        mask = FragmentMask(fragment(0, 50, owned), torch.device("cpu"))
        mask.keep[3] = masks.PRUNED  # earlier
        ((count, part),) = SingleWeights({mask: master}).prune({mask: cut}).values()
        assert torch.equal(mask.keep != 0, master > 2.5)
        total, digest = total + count, digest + part
        earlier = int(owned[0] <= 3 < owned[1])
        assert mask.owned_digest()[0] == count + earlier
    assert total == 20
    newly = np.ones(50, bool)
    newly[[i for i in range(21) if i != 3]] = False
    assert hex_digest(digest) == expected_digest({"layer.weight": newly})


def test_positions_are_logical_not_local() -> None:
    keep = torch.ones(10, dtype=torch.bool)
    keep[4] = False
    whole = mask_of(keep)
    part = mask_of(keep[3:], fragment(3, 7))
    assert whole.owned_digest() == part.owned_digest()
    want = int(position_hashes("layer.weight", 10)[4])
    assert whole.owned_digest() == (1, want - 2**64 if want >= 2**63 else want)
    assert whole.uid == name_hash("layer.weight")


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_sums_wrap_as_int64(values: list[int]) -> None:
    assert sum_modulo_2_64(values) == int(torch.tensor(values, dtype=torch.int64).sum())


def test_masks_that_lie_end_to_end_become_one_run() -> None:
    """Padding, or a fragment that is not pruned, ends a run; so does a master."""
    places = [(0, 0, 5), (0, 5, 3), (0, 9, 4), (1, 13, 2), (1, 0, 6)]  # (slot, offset, length)
    masks = {
        (slot, offset): FragmentMask(
            Fragment(f"{slot}.{offset}", 0, length, slot, offset, 0, length), torch.device("cpu")
        )
        for slot, offset, length in places
    }
    kept_before = any_keep(3)
    masks[0, 5].load(kept_before)
    runs = join_runs(masks.values())
    assert [(run.slot, run.offset, run.keep.numel()) for run in runs] == [
        (0, 0, 8),
        (0, 9, 4),
        (1, 0, 6),
        (1, 13, 2),
    ]
    assert torch.equal(masks[0, 5].keep != 0, kept_before)
    for seed, mask in enumerate(masks.values()):  # a later change of a mask is one of its run
        mask.load(any_keep(mask.fragment.length, seed))
    masters = {0: any_bits(14, torch.float32).view(2, 7), 1: any_bits(15, torch.float32)}
    want = {slot: master.clone() for slot, master in masters.items()}
    for (slot, offset), mask in masks.items():
        mask.apply(want[slot].view(-1)[offset : offset + mask.fragment.length])
    for run in runs:
        run.apply(masters[run.slot])
    for slot, master in masters.items():
        assert torch.equal(master.view(torch.int32), want[slot].view(torch.int32))
