"""Which tokens of a row are to be predicted, and what stands in their place.

BERT's rule (arXiv 1810.04805, sec. 3.1): of the chosen positions 80 % become [MASK], 10 % another
ordinary token, 10 % stay. How many are chosen is not left to chance: round(p * maskable), so every
rank can know the masked tokens of a global batch without asking the others. Special ids are never
chosen and never drawn.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert.corpora.randomness import Purpose, random_bits
from bert.vocabulary import Vocabulary

Int64Array = npt.NDArray[np.int64]
# The probability as a whole number of billionths: integer arithmetic rounds alike everywhere.
BILLION = 1_000_000_000


def masked_count(
    maskable: npt.NDArray[np.integer], *, mlm_probability: float
) -> npt.NDArray[np.int64]:
    """round(p * maskable), halves up, at least 1 where anything is maskable; same shape."""
    billionths = round(mlm_probability * BILLION)
    wide = maskable.astype(np.int64)
    rounded = (2 * billionths * wide + BILLION) // (2 * BILLION)
    return np.minimum(np.maximum(rounded, 1), wide)


@dataclass(frozen=True, eq=False)
class Masker:
    """Masks rows of one vocabulary with one seed; every result is a function of its arguments."""

    ordinary_ids: Int64Array  # what a random replacement is drawn from
    is_special: npt.NDArray[np.bool_]  # [vocabulary size]
    mask_id: int
    seed: int
    always_mask: bool  # evaluation: every chosen position becomes [MASK]

    def maskable_positions(self, input_ids: Int64Array) -> Int64Array:
        return np.flatnonzero(~self.is_special[input_ids])

    def mask_row(
        self, input_ids: Int64Array, candidates: Int64Array, *, count: int, epoch: int, row: int
    ) -> tuple[Int64Array, Int64Array]:
        """Mask `count` of the positions `candidates` of `input_ids` [T] in place.

        Returns:
            The chosen positions in ascending order, and the ids that stood there; both [count].
        """
        bits = random_bits(
            Purpose.MASKING,
            seed=self.seed,
            epoch=epoch,
            row=row,
            count=len(candidates) + 2 * count,
        )
        order = np.argsort(bits[: len(candidates)], kind="stable")
        chosen = np.sort(candidates[order[:count]])
        labels = input_ids[chosen]
        if self.always_mask:
            input_ids[chosen] = self.mask_id
            return chosen, labels
        # The bias of a modulus of 64 random bits is below 2^-40.
        tenth = bits[len(candidates) : len(candidates) + count] % np.uint64(10)
        drawn = self.ordinary_ids[bits[len(candidates) + count :] % len(self.ordinary_ids)]
        replacement = np.where(tenth == 8, drawn, labels)
        input_ids[chosen] = np.where(tenth < 8, self.mask_id, replacement)
        return chosen, labels


def build_masker(vocabulary: Vocabulary, *, seed: int, always_mask: bool) -> Masker:
    is_special = np.zeros(vocabulary.size, dtype=np.bool_)
    is_special[list(vocabulary.special_ids)] = True
    ordinary_ids = np.flatnonzero(~is_special)
    return Masker(ordinary_ids, is_special, vocabulary.mask_id, seed, always_mask)
