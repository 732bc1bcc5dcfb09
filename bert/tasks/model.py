"""A task's model: a Hugging Face BertModel and one dense head, in one module that the engine calls.

    input_ids [R, T] -> encoder with packed attention [R, T, D]
      text        pooler of [CLS] -> classifier [R, C]     cross entropy, binary ones, or squares
      words       classifier [R, T, C]                     cross entropy at first sub-tokens
      questions   qa_outputs [R, T, 2]                     cross entropy over T, of start and of end

Parameters have the names of BertForSequenceClassification, BertForTokenClassification and
BertForQuestionAnswering. Heads and pooler stay dense: no name of theirs is prunable.

Legend: R rows, T tokens a row, D hidden, C classes.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import BertConfig, BertModel

from bert.architecture import IGNORE_INDEX
from bert.attention import PACKED_ATTENTION
from bert.config import DistillationConfig, ModelConfig
from bert.distillation import mix, soft_binary_cross_entropy, soft_cross_entropy
from bert.model import build_bert_config, encode_packed
from bert.tasks.config import Kind


class TaskModel(nn.Module):
    """An encoder with the head of one kind of task."""

    def __init__(
        self,
        bert_config: BertConfig,
        *,
        kind: Kind,
        num_outputs: int,
        distillation: DistillationConfig | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.distillation = distillation
        self.bert = BertModel(bert_config, add_pooling_layer=kind not in _TOKEN_KINDS)
        self.dropout = nn.Dropout(bert_config.hidden_dropout_prob)
        head = nn.Linear(bert_config.hidden_size, num_outputs)
        nn.init.normal_(head.weight, std=bert_config.initializer_range)
        nn.init.zeros_(head.bias)
        self.add_module("qa_outputs" if kind == "question_answering" else "classifier", head)

    @property
    def head(self) -> nn.Module:
        """The task's own linear layer."""
        return self.get_submodule(
            "qa_outputs" if self.kind == "question_answering" else "classifier"
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        targets: torch.Tensor,
        loss_divisor: float = 1.0,
        return_logits: bool = False,
        teacher_logits: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The sum of the loss over the targets that are there, divided by `loss_divisor`.

        Args:
            input_ids: int64 [R, T].
            token_type_ids: int64 [R, T], 1 in the second text of a pair.
            position_ids: int64 [R, T].
            cu_seqlens: int32 [S + 1], see PretrainingModel.
            max_seqlen: tokens of the longest segment.
            targets: see TaskMicroBatch.
            loss_divisor: terms of the loss in the global batch.
            return_logits: also return the logits, fp32: [R, C], [R, T, C], or [R, T, 2].
            teacher_logits: of the same shape; None learns from the targets alone.

        Returns:
            The loss, a float32 scalar; 0 with a gradient of 0 without a single target.
        """
        logits = self.compute_logits(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
        )
        loss = compute_loss(self.kind, logits, targets)
        if teacher_logits is not None and self.distillation is not None:
            temperature = self.distillation.temperature
            soft = compute_soft_loss(
                self.kind, logits, teacher_logits, targets, temperature=temperature
            )
            loss = mix(loss, soft, self.distillation.hardness)
        loss = loss / loss_divisor
        return (loss, logits) if return_logits else loss

    def compute_logits(
        self,
        *,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        **_: Any,
    ) -> torch.Tensor:
        """What the model says, fp32; see `forward`."""
        hidden = encode_packed(
            self.bert,
            input_ids,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            token_type_ids=token_type_ids,
        )
        if self.bert.pooler is not None:
            hidden = self.bert.pooler(hidden)
        logits: torch.Tensor = self.head(self.dropout(hidden)).float()
        if self.kind == "question_answering":
            # Padding takes no part: how much there is depends on the other rows.
            padding = (input_ids == self.bert.config.pad_token_id).unsqueeze(-1)
            logits = logits.masked_fill(padding, _NO_SPAN)
        return logits


# Far below any logit, and finite: a row of padding has a loss of 0, not NaN.
_NO_SPAN = -1e4
_TOKEN_KINDS: tuple[Kind, ...] = ("tokens", "question_answering")


def build_task_model(
    config: ModelConfig,
    *,
    kind: Kind,
    num_outputs: int,
    vocab_size: int,
    pad_id: int,
    hidden_dropout: float,
    attention_dropout: float,
    seed: int,
    distillation: DistillationConfig | None = None,
) -> TaskModel:
    """A model with new weights on the CPU; they depend on the dimensions and `seed` alone."""
    bert_config = build_bert_config(
        config,
        vocab_size=vocab_size,
        pad_id=pad_id,
        hidden_dropout=hidden_dropout,
        attention_dropout=attention_dropout,
    )
    bert_config._attn_implementation = PACKED_ATTENTION
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return TaskModel(bert_config, kind=kind, num_outputs=num_outputs, distillation=distillation)


def compute_loss(kind: Kind, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the loss over the targets that are there; half of start's and end's for spans."""
    if kind in ("classification", "relation"):
        return _cross_entropy_sum(logits, targets)
    if kind == "tokens":
        return _cross_entropy_sum(logits.flatten(0, 1), targets.flatten())
    if kind == "question_answering":
        start, end = logits.unbind(-1)
        total = _cross_entropy_sum(start, targets[:, 0]) + _cross_entropy_sum(end, targets[:, 1])
        return total / 2
    there = ~targets.isnan()
    wanted = targets.nan_to_num(0.0)
    if kind == "regression":
        terms = (logits.squeeze(-1) - wanted) ** 2
    else:
        terms = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    # A product, not a selection: without a target every parameter still has its gradient of 0.
    return (terms * there).sum()


def compute_soft_loss(
    kind: Kind,
    logits: torch.Tensor,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float,
) -> torch.Tensor:
    """The same sum with the teacher's answers in the targets' place, where a target is there.

    A number has no temperature: there it is the squared distance to the teacher's.
    """
    if kind == "question_answering":
        present = targets[:, 0] != IGNORE_INDEX
        spans = zip(logits.unbind(-1), teacher.unbind(-1), strict=True)
        parts = [soft_cross_entropy(s, t, present, temperature=temperature) for s, t in spans]
        return (parts[0] + parts[1]) / 2
    if kind == "regression":
        return (((logits - teacher).squeeze(-1) ** 2) * ~targets.isnan()).sum()
    if kind == "multi_label":
        return soft_binary_cross_entropy(logits, teacher, ~targets.isnan(), temperature=temperature)
    return soft_cross_entropy(logits, teacher, targets != IGNORE_INDEX, temperature=temperature)


def _cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
