"""What a model predicts for a split, and the metrics of it: the same on every rank.

Each rank runs its rows and writes what it found into its own places of one array; the sum over
the ranks is the whole. Texts give their logits, words their class, windows their best span.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bert.tasks import metrics
from bert.tasks.batches import TaskBatches, TaskMicroBatch
from bert.tasks.config import TaskConfig
from bert.tasks.encoding import EncodedSplit
from bert.tasks.formats.examples import QuestionExample, TextExample, TokenExample
from distributed.world import all_reduce_sum
from distributed.zero import Engine


@dataclass(frozen=True)
class Predictions:
    """Answers in the task's own words: a label, labels, a number, tags or a text an example."""

    values: list[Any]
    loss: float  # the mean over the loss terms
    figures: dict[str, float]


@torch.no_grad()
def predict(
    engine: Engine,
    split: EncodedSplit,
    batches: TaskBatches,
    *,
    task: TaskConfig,
    labels: Sequence[str],
    beat: Callable[[], object] = lambda: None,
) -> Predictions:
    """Collective: run `split` through the model and score it; alike on all ranks.

    Args:
        engine: holds the weights; left in training mode.
        split: the rows.
        batches: this rank's share of them, for evaluation.
        task: its kind, metrics and longest answer.
        labels: of the model's outputs.
        beat: called after each forward, for whoever watches that there is progress.
    """
    engine.train(False)
    found = _empty_answers(split, task, len(labels))
    word_starts = _word_starts(split)
    loss = torch.zeros(1, dtype=torch.float64)
    for micro_batch in batches.micro_batches(0):
        share, logits = engine.forward(**micro_batch.to(engine.device), return_logits=True)
        loss += share.double().cpu()
        _collect(found, logits.cpu(), micro_batch, split, task, word_starts)
        beat()
    engine.train(True)
    whole = all_reduce_sum(torch.from_numpy(found)).numpy()
    mean_loss = float(all_reduce_sum(loss)) / batches.loss_terms(0)
    values = _decode(whole, split, task, labels)
    return Predictions(values, mean_loss, score(split, values, task=task, labels=labels))


def score(
    split: EncodedSplit, values: Sequence[Any], *, task: TaskConfig, labels: Sequence[str]
) -> dict[str, float]:
    """The task's metrics of predicted `values`, one an example."""
    examples, names = split.examples, task.metrics
    if task.kind == "tokens":
        tags = [e.tags for e in examples if isinstance(e, TokenExample)]
        return metrics.score_tags(names, truth=tags, predicted=values)
    if task.kind == "question_answering":
        answers = [e.answers for e in examples if isinstance(e, QuestionExample)]
        return metrics.score_answers(names, answers=answers, predicted=values)
    truth: list[Any] = [e.label for e in examples if isinstance(e, TextExample)]
    if task.kind == "regression":
        return metrics.score_numbers(names, truth=truth, predicted=values)
    if task.kind == "multi_label":
        return metrics.score_class_sets(
            names,
            truth=np.array([[label in sets for label in labels] for sets in truth]),
            predicted=np.array([[label in sets for label in labels] for sets in values]),
        )
    negative = [task.label_map.get(label, label) for label in task.negative_labels]
    return metrics.score_classes(
        names, truth=truth, predicted=values, labels=labels, negative_labels=negative
    )


def best_span(
    logits: torch.Tensor, spans: npt.NDArray[np.int64], *, max_tokens: int
) -> tuple[float, int, int]:
    """Score and characters [start, end) of the best answer in one window.

    Args:
        logits: fp32 [T, 2] of start and end.
        spans: int64 [T, 2], characters that a token covers; -1 where it may not answer.
        max_tokens: of an answer.
    """
    allowed = torch.from_numpy(spans[:, 0] >= 0)
    start = logits[: len(spans), 0].masked_fill(~allowed, -torch.inf)
    end = logits[: len(spans), 1].masked_fill(~allowed, -torch.inf)
    scores = start[:, None] + end[None, :]
    band = torch.ones_like(scores, dtype=torch.bool).triu().tril(max_tokens - 1)
    best = int(scores.masked_fill(~band, -torch.inf).argmax())
    first, last = divmod(best, len(spans))
    return float(scores[first, last]), int(spans[first, 0]), int(spans[last, 1])


def _empty_answers(split: EncodedSplit, task: TaskConfig, num_labels: int) -> npt.NDArray[Any]:
    """Zeros: [N, C] for texts, [all words] for words, [rows, 3] for windows of a context."""
    if task.kind == "tokens":
        return np.zeros(sum(len(e.words) for e in split.examples if isinstance(e, TokenExample)))
    width = {"question_answering": 3, "regression": 1}.get(task.kind, num_labels)
    return np.zeros((len(split.rows), width))


def _collect(
    found: npt.NDArray[Any],
    logits: torch.Tensor,
    micro_batch: TaskMicroBatch,
    split: EncodedSplit,
    task: TaskConfig,
    word_starts: npt.NDArray[np.int64],
) -> None:
    """Write the micro-batch's answers into their places."""
    for at, row_id in enumerate(micro_batch.rows):
        row = split.rows[row_id]
        if task.kind == "tokens":
            classes = logits[at, row.words[:, 0]].argmax(dim=-1).numpy()
            found[word_starts[row.example] + row.words[:, 1]] = classes
        elif task.kind == "question_answering":
            found[row_id] = best_span(logits[at], row.spans, max_tokens=task.max_answer_tokens)
        else:
            found[row_id] = logits[at].double().numpy()


def _decode(
    whole: npt.NDArray[Any], split: EncodedSplit, task: TaskConfig, labels: Sequence[str]
) -> list[Any]:
    if task.kind == "tokens":
        ends = np.append(_word_starts(split), len(whole))
        tags = [labels[int(index)] for index in whole]
        return [tags[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    if task.kind == "question_answering":
        best: dict[int, tuple[float, int, int]] = {}
        for row, (points, start, end) in zip(split.rows, whole, strict=True):
            if row.example not in best or points > best[row.example][0]:
                best[row.example] = (points, int(start), int(end))
        contexts = [e.context for e in split.examples if isinstance(e, QuestionExample)]
        return [contexts[i][best[i][1] : best[i][2]] for i in range(len(contexts))]
    if task.kind == "regression":
        return [float(value) for value in whole[:, 0]]
    if task.kind == "multi_label":
        # A logit above 0 is a probability above one half.
        return [tuple(labels[int(c)] for c in np.flatnonzero(row > 0)) for row in whole]
    return [labels[int(index)] for index in whole.argmax(axis=1)]


def _word_starts(split: EncodedSplit) -> npt.NDArray[np.int64]:
    """Where each sentence's words begin among all words of the split."""
    lengths = [len(e.words) for e in split.examples if isinstance(e, TokenExample)]
    return np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
