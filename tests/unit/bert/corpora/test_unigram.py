import numpy as np
import pytest

from bert.config import DataConfig
from bert.corpora.batches import build_validation_batches
from bert.corpora.unigram import ALPHAS, load_unigram_counts, unigram_loss
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.errors import BadInput
from tests.unit.bert.corpora.conftest import Prepared


def test_against_the_formula_for_each_alpha() -> None:
    counts = np.array([5, 0, 3, 2], dtype=np.int64)
    labels = np.array([0, -100, 2, 1, 0, -100])
    losses = []
    for alpha in ALPHAS:
        p = (counts + alpha) / (counts + alpha).sum()
        losses.append(-np.mean([np.log(p[label]) for label in (0, 2, 1, 0)]))
    assert unigram_loss(counts, labels) == pytest.approx(min(losses))
    assert unigram_loss(counts, labels, alphas=(1.0,)) == pytest.approx(losses[ALPHAS.index(1.0)])


def test_own_distribution_gives_its_entropy() -> None:
    counts = np.array([8, 4, 2, 2], dtype=np.int64)
    labels = np.repeat(np.arange(4), counts)
    assert unigram_loss(counts, labels) == pytest.approx(1.75 * np.log(2), abs=1e-3)


def test_no_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="no label"):
        unigram_loss(np.ones(4, dtype=np.int64), np.array([-100]))


def test_real_text(general: Prepared, pubmed: Prepared, vocabulary: Vocabulary) -> None:
    """English has about 7 nats a token; counts of the other field predict it worse."""
    losses = {}
    for prepared in (general, pubmed):
        folder = prepared.report.validation_output
        batches = build_validation_batches(
            DataConfig(shards=[folder]),
            [folder],
            vocabulary=vocabulary,
            rows=16,
            micro_batch_rows=4,
            rank=0,
            world_size=1,
        )
        labels = np.concatenate([batch.labels.numpy() for batch in batches.micro_batches(0)])
        for other in (general, pubmed):
            counts = load_unigram_counts(other.report.validation_output, vocabulary=vocabulary)
            losses[prepared is pubmed, other is pubmed] = unigram_loss(counts, labels)
    assert 6 < losses[False, False] < losses[False, True]
    assert 6 < losses[True, True] < losses[True, False]


def test_counts_are_refused_from_the_wrong_folder(pubmed: Prepared, vocabulary: Vocabulary) -> None:
    with pytest.raises(
        BadInput, match="is a training split: give the folder ending in -validation"
    ):
        load_unigram_counts(pubmed.report.output, vocabulary=vocabulary)
    cased = load_vocabulary(pubmed.vocabulary_path, lower_case=False)
    with pytest.raises(BadInput, match="another vocabulary"):
        load_unigram_counts(pubmed.report.validation_output, vocabulary=cased)
