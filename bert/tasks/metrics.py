"""The figures of the field, between 0 and 1 (correlations -1 and 1), by the libraries of the field.

accuracy, F1s, Matthews      scikit-learn
Pearson, Spearman            scipy
entity_f1                    seqeval: exact spans and types, conlleval's reading of BIO tags
macro_word_f1                scikit-learn over words: the mean of the F1 of each class but O
exact_match, answer_f1       SQuAD v1.1's own normalisation; the best over the annotators

The libraries are imported where they are used: that takes seconds, and most processes of a run
compute no score.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_classes(
    names: Sequence[str],
    *,
    truth: Sequence[str],
    predicted: Sequence[str],
    labels: Sequence[str],
    negative_labels: Sequence[str] = (),
) -> dict[str, float]:
    """Metrics of one class an example. `f1` is that of the last label, of two (GLUE's 1)."""
    from sklearn import metrics as sklearn_metrics

    positive = [label for label in labels if label not in negative_labels]

    def f1(labels: Sequence[str], average: str) -> Any:
        return sklearn_metrics.f1_score(
            truth, predicted, labels=list(labels), average=average, zero_division=0.0
        )

    compute = {
        "accuracy": lambda: sklearn_metrics.accuracy_score(truth, predicted),
        "f1": lambda: f1([labels[-1]], "macro"),
        "macro_f1": lambda: f1(labels, "macro"),
        "micro_f1": lambda: f1(labels, "micro"),
        "positive_micro_f1": lambda: f1(positive, "micro"),
        "matthews": lambda: sklearn_metrics.matthews_corrcoef(truth, predicted),
    }
    return {name: float(compute[name]()) for name in names}


def score_class_sets(
    names: Sequence[str], *, truth: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Metrics of several classes an example; both are bool [N, C]."""
    from sklearn import metrics as sklearn_metrics

    averages = {"micro_f1": "micro", "macro_f1": "macro"}
    return {
        name: float(
            sklearn_metrics.f1_score(truth, predicted, average=averages[name], zero_division=0.0)
        )
        for name in names
    }


def score_numbers(
    names: Sequence[str], *, truth: Sequence[float], predicted: Sequence[float]
) -> dict[str, float]:
    """Correlations; 0 where one side is constant, for then there is none."""
    from scipy import stats

    compute = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    figures = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            value = float(compute[name](truth, predicted).statistic) if len(truth) > 1 else 0.0
        figures[name] = value if np.isfinite(value) else 0.0
    return figures


def score_tags(
    names: Sequence[str], *, truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Metrics of tagged sentences: the tags of each sentence's words."""
    from seqeval.metrics import f1_score as seqeval_f1
    from sklearn import metrics as sklearn_metrics

    figures = {}
    for name in names:
        if name == "entity_f1":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # seqeval warns where nothing is predicted
                value = seqeval_f1(_typed(truth), _typed(predicted), zero_division=0)
        else:
            flat_truth = [tag for tags in truth for tag in tags]
            flat_predicted = [tag for tags in predicted for tag in tags]
            classes = sorted(set(flat_truth) - {"O"})
            value = sklearn_metrics.f1_score(
                flat_truth, flat_predicted, labels=classes, average="macro", zero_division=0.0
            )
        figures[name] = float(value)
    return figures


def score_answers(
    names: Sequence[str], *, answers: Sequence[Sequence[str]], predicted: Sequence[str]
) -> dict[str, float]:
    """SQuAD v1.1: the mean over questions of the best score over the annotators' answers."""
    compute = {"exact_match": compute_exact_match, "answer_f1": compute_answer_f1}
    return {
        name: float(
            np.mean(
                [
                    max(compute[name](guess, answer) for answer in given)
                    for given, guess in zip(answers, predicted, strict=True)
                ]
            )
        )
        for name in names
    }


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and needless blanks, as SQuAD's script does."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def compute_exact_match(predicted: str, answer: str) -> float:
    """1 if both are the same once normalised."""
    return float(normalise_answer(predicted) == normalise_answer(answer))


def compute_answer_f1(predicted: str, answer: str) -> float:
    """F1 over the words of the two, as bags; SQuAD v1.1 gives 0 where no word is shared."""
    guess, gold = normalise_answer(predicted).split(), normalise_answer(answer).split()
    shared = sum((Counter(guess) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(guess), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def select(figures: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The figures under `prefix/name`, for the log."""
    return {f"{prefix}/{name}": value for name, value in figures.items()}


def _typed(tags: Sequence[Sequence[str]]) -> list[list[str]]:
    """Name the type of bare tags: seqeval takes a lone B for an entity of type B."""
    return [[f"{tag}-ENTITY" if tag in ("B", "I") else tag for tag in sent] for sent in tags]
