from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest

from bert.corpora.masking import build_masker, masked_count
from bert.vocabulary import Vocabulary


@pytest.mark.parametrize("probability", ["0.15", "0.3", "0.5", "0.001", "0.4", "0.999"])
def test_count_is_rounded_half_up_and_at_least_one(probability: str) -> None:
    maskable = np.arange(600, dtype=np.int32)
    exact = [
        int((Decimal(probability) * n).quantize(Decimal(1), ROUND_HALF_UP)) for n in range(600)
    ]
    expected = [0] + [max(1, n) for n in exact[1:]]
    assert masked_count(maskable, mlm_probability=float(probability)).tolist() == expected


def rows(vocabulary: Vocabulary) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    generator = np.random.default_rng(0)
    ids = generator.integers(1000, vocabulary.size, (400, 512))
    ids[:, 0], ids[:, 200], ids[:, 201], ids[:, 450] = 101, 102, 101, 102
    ids[:, 451:] = 0
    ids[:, 7] = vocabulary.unk_id
    return ids


def test_eighty_ten_ten(vocabulary: Vocabulary) -> None:
    masker = build_masker(vocabulary, seed=1, always_mask=False)
    became_mask = became_other = stayed = 0
    hits = np.zeros(512, dtype=np.int64)
    drawn = []
    for row, original in enumerate(rows(vocabulary)):
        ids = original.copy()
        candidates = masker.maskable_positions(ids)
        assert len(candidates) == 446
        chosen, labels = masker.mask_row(ids, candidates, count=67, epoch=0, row=row)
        assert len(chosen) == 67 and np.all(np.diff(chosen) > 0)
        assert set(chosen.tolist()) <= set(candidates.tolist())
        assert np.array_equal(labels, original[chosen])
        untouched = np.setdiff1d(np.arange(512), chosen)
        assert np.array_equal(ids[untouched], original[untouched])
        is_mask = ids[chosen] == vocabulary.mask_id
        is_same = ids[chosen] == labels
        became_mask += int(is_mask.sum())
        stayed += int(is_same.sum())
        became_other += int((~is_mask & ~is_same).sum())
        drawn.append(ids[chosen][~is_mask & ~is_same])
        hits[chosen] += 1
    total = 400 * 67
    # Four standard deviations.
    for found, share in ((became_mask, 0.8), (became_other, 0.1), (stayed, 0.1)):
        assert abs(found - share * total) < 4 * (total * share * (1 - share)) ** 0.5
    replacements = np.concatenate(drawn)
    assert not np.isin(replacements, vocabulary.special_ids).any()
    # Uniform over the vocabulary: low ids ([unused] and letters) as often as their number says.
    low = np.count_nonzero(replacements < 15_000) / len(replacements)
    assert abs(low - 15_000 / vocabulary.size) < 0.05
    # Every ordinary position is chosen about equally often (mean 60, standard deviation 7).
    ordinary = hits[hits > 0]
    assert len(ordinary) == 446 and ordinary.min() > 25 and ordinary.max() < 100


def test_pure_function_of_seed_epoch_and_row(vocabulary: Vocabulary) -> None:
    original = rows(vocabulary)[0]

    def mask(seed: int, epoch: int, row: int) -> tuple[list[int], list[int]]:
        masker = build_masker(vocabulary, seed=seed, always_mask=False)
        ids = original.copy()
        candidates = masker.maskable_positions(ids)
        chosen, _ = masker.mask_row(ids, candidates, count=67, epoch=epoch, row=row)
        return chosen.tolist(), ids.tolist()

    assert mask(1, 2, 3) == mask(1, 2, 3)
    distinct = [mask(*key)[0] for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2))]
    assert len({tuple(chosen) for chosen in distinct}) == 5
    # Data order is a promise across versions of NumPy and of this package.
    assert mask(1, 2, 3)[0][:5] == [4, 5, 12, 19, 21]


def test_evaluation_masks_every_chosen_position(vocabulary: Vocabulary) -> None:
    masker = build_masker(vocabulary, seed=0, always_mask=True)
    ids = rows(vocabulary)[0]
    chosen, _ = masker.mask_row(ids, masker.maskable_positions(ids), count=67, epoch=0, row=0)
    assert np.all(ids[chosen] == vocabulary.mask_id)
    assert np.count_nonzero(ids == vocabulary.mask_id) == 67
