"""The loss of the best predictor that ignores the context: what a trained model must be below."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert.corpora.manifest import (
    UNIGRAM_COUNTS_NAME,
    check_files,
    check_vocabulary,
    load_array,
    load_manifest,
)
from bert.vocabulary import Vocabulary
from distributed.errors import BadInput

ALPHAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def unigram_loss(
    counts: npt.NDArray[np.int64],
    labels: npt.NDArray[np.integer],
    *,
    alphas: tuple[float, ...] = ALPHAS,
) -> float:
    """Mean of -ln p over `labels` (those below 0 are padding), in nats a token.

    p = (count + alpha) / sum(count + alpha), from the counts of the training split. Alpha is the
    one of `alphas` that is best on these very labels: a favour to the baseline, not the model.

    Raises:
        ValueError: there is no label.
    """
    labels = labels[labels >= 0]
    if labels.size == 0:
        raise ValueError("no label to predict")
    total = float(counts.sum())
    label_counts = counts[labels].astype(np.float64)
    return min(
        float(np.log(total + alpha * counts.size) - np.log(label_counts + alpha).mean())
        for alpha in alphas
    )


def load_unigram_counts(directory: Path, *, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """`int64 [vocabulary size]`: token counts of the training split, from a validation folder.

    Raises:
        BadInput: the folder is no validation split, damaged, or of another vocabulary.
    """
    manifest = load_manifest(directory)
    check_vocabulary(manifest, vocabulary, directory=directory)
    check_files(manifest, directory=directory, verify=False)
    if manifest.unigram_counts is None:
        raise BadInput(
            f"{directory} is a training split: give the folder ending in -validation beside it."
        )
    counts = load_array(directory / UNIGRAM_COUNTS_NAME)
    if counts.shape != (vocabulary.size,) or counts.dtype != np.int64:
        raise BadInput(
            f"{directory / UNIGRAM_COUNTS_NAME} is damaged: remove {directory} and the folder "
            "without -validation and run `sparsebert prepare` again."
        )
    return np.asarray(counts, dtype=np.int64)
