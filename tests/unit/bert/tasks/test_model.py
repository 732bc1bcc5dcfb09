"""The task models against transformers' own, on padded rows: logits, losses and parameter names."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from bert.architecture import is_prunable, named_weights
from bert.config import ModelConfig
from bert.tasks.batches import TaskBatches, TaskMicroBatch
from bert.tasks.encoding import Row
from bert.tasks.model import TaskModel, build_task_model
from bert.tasks.predicting import best_span
from bert.vocabulary import Vocabulary

THEIRS = {
    "classification": BertForSequenceClassification,
    "multi_label": BertForSequenceClassification,
    "regression": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
    "question_answering": BertForQuestionAnswering,
}
OUTPUTS = {"regression": 1, "question_answering": 2}
LENGTHS = (5, 12, 8)


def build(vocabulary: Vocabulary, kind: Any) -> TaskModel:
    config = ModelConfig(
        hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32,
        max_position_embeddings=16, vocab=vocabulary.path,
    )  # fmt: skip
    model = build_task_model(
        config, kind=kind, num_outputs=OUTPUTS.get(kind, 3), vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id, hidden_dropout=0.0, attention_dropout=0.0, seed=1,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # so that a wrong mask shows
    return model.eval()


def rows(kind: str) -> list[Row]:
    draw = np.random.default_rng(2)
    made = []
    for i, length in enumerate(LENGTHS):
        types = np.zeros(length, np.int64)
        types[length // 2 :] = 1
        target: np.ndarray = {
            "classification": np.array(i, np.int64),
            "multi_label": np.array([1, i % 2, 0], np.float32),
            "regression": np.array(1.5 * i, np.float32),
            "tokens": np.where(np.arange(length) % 3, np.arange(length) % 2, -100),
            "question_answering": np.array([2, 3 + i % 2]),
        }[kind]
        ids = draw.integers(5, 60, length)
        made.append(Row(ids, types, target, 1, i))
    return made


def micro_batch(kind: str, micro_batch_rows: int) -> TaskMicroBatch:
    batches = TaskBatches(
        rows(kind), pad_id=0, seed=1, global_batch_rows=3, micro_batch_rows=micro_batch_rows,
        rank=0, world_size=1, evaluation=True,
    )  # fmt: skip
    return next(iter(batches.micro_batches(0)))


@pytest.mark.parametrize("kind", THEIRS)
def test_it_is_transformers_model(vocabulary: Vocabulary, kind: str) -> None:
    ours = build(vocabulary, kind)
    config = copy.deepcopy(ours.bert.config)
    config.num_labels = OUTPUTS.get(kind, 3)
    config._attn_implementation = "sdpa"
    theirs = THEIRS[kind](config).eval()
    theirs.load_state_dict(ours.state_dict())  # the names are theirs: nothing missing or too many

    batch = micro_batch(kind, 4)  # the fourth row is padding
    _, got = ours(**batch.to(torch.device("cpu")), return_logits=True)
    mask = (batch.input_ids[:3] != 0).long()
    inputs = {"input_ids": batch.input_ids[:3], "token_type_ids": batch.token_type_ids[:3]}
    with torch.no_grad():
        out = theirs(**inputs, attention_mask=mask)
    if kind == "question_answering":
        want = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        want = out.logits
    got = got[:3].detach()
    if got.ndim == 3:
        got, want = got[mask.bool()], want[mask.bool()]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert want.std() > 0.02


def expected_loss(kind: str, logits: torch.Tensor, order: Sequence[int]) -> float:
    """The sum of the loss, term by term."""
    total = 0.0
    for at, row_id in enumerate(order):
        row, length = rows(kind)[row_id], LENGTHS[row_id]
        out = logits[at].double()
        if kind == "classification":
            total -= float(out.log_softmax(0)[row.target])
        elif kind == "regression":
            total += (float(out[0]) - float(row.target)) ** 2
        elif kind == "multi_label":
            p = out.sigmoid()
            y = torch.from_numpy(row.target).double()
            total -= float((y * p.log() + (1 - y) * (1 - p).log()).sum())
        elif kind == "tokens":
            for place, label in enumerate(row.target):
                if label != -100:
                    total -= float(out[place].log_softmax(0)[label])
        else:
            spans = out[:length].log_softmax(0)  # over the row's own tokens
            total -= float(spans[row.target[0], 0] + spans[row.target[1], 1]) / 2
    return total


@pytest.mark.parametrize("kind", THEIRS)
def test_the_loss_ignores_padding(vocabulary: Vocabulary, kind: str) -> None:
    model = build(vocabulary, kind)
    batch = micro_batch(kind, 4)
    loss, logits = model(**batch.to(torch.device("cpu")), loss_divisor=2.0, return_logits=True)
    assert float(loss.detach()) == pytest.approx(
        expected_loss(kind, logits.detach(), batch.rows) / 2, rel=1e-4
    )


@pytest.mark.parametrize("kind", THEIRS)
def test_nothing_but_padding_has_a_gradient_of_zero(vocabulary: Vocabulary, kind: str) -> None:
    model = build(vocabulary, kind)
    batches = TaskBatches(
        rows(kind), pad_id=0, seed=1, global_batch_rows=3, micro_batch_rows=1, rank=0,
        world_size=2, evaluation=False,
    )  # fmt: skip
    _, batch = batches.micro_batches(0)  # the other rank has two rows, this one has one
    assert len(batch.rows) == 0
    loss = model(**batch.to(torch.device("cpu")))
    loss.backward()
    assert float(loss.detach()) == 0
    for name, parameter in named_weights(model):
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_heads_and_pooler_are_not_prunable(vocabulary: Vocabulary) -> None:
    names = [name for name, _ in named_weights(build(vocabulary, "classification"))]
    assert {"pooler.dense.weight", "classifier.weight"} <= set(names)
    prunable = [name for name in names if is_prunable(name)]
    assert len(prunable) == 12 and all(name.startswith("encoder.layer.") for name in prunable)


def test_the_best_span_is_the_best_of_all() -> None:
    draw = torch.Generator().manual_seed(4)
    spans = np.array([[-1, -1]] * 3 + [[4 * i, 4 * i + 3] for i in range(9)] + [[-1, -1]])
    for most in (1, 3, 20):
        logits = torch.randn(20, 2, generator=draw)  # the row is padded to 20
        allowed = range(3, 12)
        want = max(
            (float(logits[i, 0] + logits[j, 1]), int(spans[i, 0]), int(spans[j, 1]))
            for i in allowed
            for j in allowed
            if i <= j < i + most
        )
        got = best_span(logits, spans, max_tokens=most)
        assert got == (pytest.approx(want[0]), *want[1:])
