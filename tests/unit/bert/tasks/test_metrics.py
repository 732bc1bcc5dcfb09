"""Every metric against a scorer written from its definition, on predictions with many errors."""

import random
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from bert.tasks import metrics

LABELS = ("false", "CPR:3", "CPR:4", "CPR:9")


def noisy(truth: Sequence[str], labels: Sequence[str], rate: float, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [draw.choice(labels) if draw.random() < rate else label for label in truth]


def confusion(truth: Sequence[str], predicted: Sequence[str]) -> Counter[tuple[str, str]]:
    return Counter(zip(truth, predicted, strict=True))


def f1_of(pairs: Counter[tuple[str, str]], labels: Sequence[str]) -> float:
    """Micro F1 over `labels`, from counts of (truth, predicted)."""
    hit = sum(n for (t, p), n in pairs.items() if t == p and t in labels)
    said = sum(n for (_, p), n in pairs.items() if p in labels)
    there = sum(n for (t, _), n in pairs.items() if t in labels)
    return 2 * hit / (said + there)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_classes(seed: int) -> None:
    draw = random.Random(seed)
    truth = draw.choices(LABELS, weights=[6, 1, 3, 1], k=400)
    predicted = noisy(truth, LABELS, 0.4, seed)
    pairs = confusion(truth, predicted)
    got = metrics.score_classes(
        ["accuracy", "macro_f1", "micro_f1", "positive_micro_f1", "f1", "matthews"],
        truth=truth,
        predicted=predicted,
        labels=LABELS,
        negative_labels=["false"],
    )
    assert got["accuracy"] == pytest.approx(sum(pairs[x, x] for x in LABELS) / 400)
    assert got["macro_f1"] == pytest.approx(np.mean([f1_of(pairs, [x]) for x in LABELS]))
    assert got["micro_f1"] == pytest.approx(got["accuracy"])
    assert got["positive_micro_f1"] == pytest.approx(f1_of(pairs, LABELS[1:]))
    assert got["f1"] == pytest.approx(f1_of(pairs, ["CPR:9"]))
    assert len({round(v, 6) for v in got.values()}) == 5, "only two of them mean the same"


def test_matthews_is_the_correlation_of_two_classes() -> None:
    truth = random.Random(4).choices("01", weights=[3, 7], k=300)
    predicted = noisy(truth, "01", 0.5, 4)
    got = metrics.score_classes(["matthews"], truth=truth, predicted=predicted, labels="01")
    want = np.corrcoef([int(x) for x in truth], [int(x) for x in predicted])[0, 1]
    assert got["matthews"] == pytest.approx(want)


def test_sets_of_classes() -> None:
    draw = np.random.default_rng(5)
    truth = draw.random((200, 4)) < [0.5, 0.2, 0.1, 0.3]
    predicted = truth ^ (draw.random((200, 4)) < 0.15)
    got = metrics.score_class_sets(["micro_f1", "macro_f1"], truth=truth, predicted=predicted)
    hits, sizes = (truth & predicted).sum(0), truth.sum(0) + predicted.sum(0)
    assert got["micro_f1"] == pytest.approx(2 * hits.sum() / sizes.sum())
    assert got["macro_f1"] == pytest.approx((2 * hits / sizes).mean())


def test_correlations() -> None:
    draw = np.random.default_rng(6)
    truth = np.round(draw.uniform(0, 5, 150), 1)  # with ties
    predicted = truth**2 + draw.normal(0, 4, 150)
    got = metrics.score_numbers(["pearson", "spearman"], truth=truth, predicted=predicted)
    assert got["pearson"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])

    def ranks(values: np.ndarray) -> np.ndarray:
        below = (values[:, None] > values[None, :]).sum(1)
        return below + ((values[:, None] == values[None, :]).sum(1) + 1) / 2

    want = np.corrcoef(ranks(truth), ranks(predicted))[0, 1]
    assert got["spearman"] == pytest.approx(want) and abs(got["pearson"] - want) > 0.005
    assert metrics.score_numbers(["pearson"], truth=truth, predicted=0 * truth) == {"pearson": 0.0}


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """conlleval's reading: an entity begins at B-, at I- after O, and where the type changes."""
    found, start, kind = set(), -1, ""
    for at, tag in enumerate([*tags, "O"]):
        letter, _, here = tag.partition("-")
        goes_on = letter == "I" and start >= 0 and here == kind
        if start >= 0 and not goes_on:
            found.add((start, at, kind))
            start = -1
        if letter != "O" and not goes_on:
            start, kind = at, here
    return found


@pytest.mark.parametrize("kinds", [("Disease", "Chemical"), ("",)])
def test_entities(kinds: Sequence[str]) -> None:
    draw = random.Random(7)
    every = ["O"] + [f"{x}-{kind}".rstrip("-") for x in "BI" for kind in kinds]
    truth, predicted = [], []
    for _ in range(120):
        sentence: list[str] = []
        while len(sentence) < 15:
            kind = draw.choice(kinds)
            begin, inside = f"B-{kind}".rstrip("-"), f"I-{kind}".rstrip("-")
            entity = [begin] + [inside] * draw.randrange(3)
            sentence += entity if draw.random() < 0.3 else ["O"]
        truth.append(sentence)
        predicted.append(noisy(sentence, every, 0.1, len(truth)))
    got = metrics.score_tags(["entity_f1", "macro_word_f1"], truth=truth, predicted=predicted)
    want = [(entities(t), entities(p)) for t, p in zip(truth, predicted, strict=True)]
    hit = sum(len(t & p) for t, p in want)
    assert got["entity_f1"] == pytest.approx(2 * hit / sum(len(t) + len(p) for t, p in want))
    pairs = confusion(sum(truth, []), sum(predicted, []))
    assert got["macro_word_f1"] == pytest.approx(np.mean([f1_of(pairs, [x]) for x in every[1:]]))
    assert 0.5 < got["entity_f1"] < got["macro_word_f1"] < 1


def official_normalise(text: str) -> str:
    """The steps of SQuAD's evaluate-v1.1.py, one by one."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


ANSWERS = (
    (["Denver Broncos", "The Denver Broncos"], "the  broncos of Denver!"),
    (["1,000", "a thousand"], "1000"),
    (["the"], "an"),
    (["Santa Clara, California"], "Santa Clara"),
    (["an answer the theatre"], "answer theatre"),
    (["to be or not to be"], "be be be"),
    (["x"], "y"),
)


def test_answers() -> None:
    exact, f1 = [], []
    for given, guess in ANSWERS:
        mine = official_normalise(guess).split()
        golds = [official_normalise(answer).split() for answer in given]
        exact.append(max(mine == gold for gold in golds))
        scores = []
        for gold in golds:
            left, shared = list(gold), 0
            for word in mine:
                if word in left:
                    left.remove(word)
                    shared += 1
            both = len(mine) + len(gold)
            scores.append(2 * shared / both if shared else 0.0)
        f1.append(max(scores))
    got = metrics.score_answers(
        ["exact_match", "answer_f1"],
        answers=[given for given, _ in ANSWERS],
        predicted=[guess for _, guess in ANSWERS],
    )
    assert got == pytest.approx({"exact_match": np.mean(exact), "answer_f1": np.mean(f1)})
    assert exact == [False, True, True, False, True, False, False]
    assert f1[2] == 0, "two empty answers match and share no word, as in SQuAD v1.1's script"
