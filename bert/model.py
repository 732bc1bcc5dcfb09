"""The model: a plain Hugging Face BertForMaskedLM inside one wrapper that computes the loss.

    input_ids [R, T] -> embeddings, encoder with packed attention [R, T, D]
      -> hidden states at masked positions [M, D] -> MLM head [M, V], in training a few rows at a
         time (masked_loss.py) -> loss, a scalar in fp32

The head runs at masked positions only: 588 million FLOPs a token for BERT-base at 512, not 710.
Legend: R rows, T tokens a row, D hidden, M masked positions, V vocabulary, S segments.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertModel

from bert.architecture import (
    DIMENSIONS,
    IGNORE_INDEX,
    is_prunable,
    named_weights,
    uses_weight_decay,
)
from bert.attention import PACKED_ATTENTION, build_block_mask, check_boundaries, uses_varlen
from bert.config import DistillationConfig, ModelConfig
from bert.distillation import mix, soft_cross_entropy
from bert.initialization import add_structure
from bert.masked_loss import sum_cross_entropy
from training.state import Weight


class PretrainingModel(nn.Module):
    """BertForMaskedLM, its masked-only head and its loss: the one module that the engine calls."""

    def __init__(
        self,
        mlm: BertForMaskedLM,
        *,
        distillation: DistillationConfig | None = None,
    ) -> None:
        super().__init__()
        self.mlm = mlm
        self.distillation = distillation

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        masked_positions: torch.Tensor,
        labels: torch.Tensor,
        loss_divisor: float = 1.0,
        count_correct: bool = False,
        teacher_logits: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The sum of the cross entropy over the masked tokens, divided by `loss_divisor`.

        Args:
            input_ids: int64 [R, T].
            position_ids: int64 [R, T], restarting at 0 with each segment.
            cu_seqlens: int32 [S + 1], boundaries of the segments in the flattened R * T tokens;
                they cover every token, padding included, and no segment crosses a row.
            max_seqlen: tokens of the longest segment.
            masked_positions: int64 [M], indices into the flattened R * T tokens. M may be 0.
            labels: int64 [M], the tokens that belong there; -100 is ignored.
            loss_divisor: masked tokens of the global batch.
            count_correct: also count the masked tokens that the model gets right, for validation.
            teacher_logits: fp32 [M, V], what the teacher says there; None learns from labels alone.

        Returns:
            The loss, a float32 scalar; with `count_correct` the loss and the count, int64.
            Without a single label the loss is 0 and so is the gradient of every parameter.
        """
        where: dict[str, Any] = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "cu_seqlens": cu_seqlens,
            "max_seqlen": max_seqlen,
        }
        if not count_correct and teacher_logits is None:  # no logits are needed whole
            head = self.mlm.cls.predictions
            masked = head.transform(self._encode_masked(masked_positions, **where))
            weight, bias = head.decoder.weight, head.decoder.bias
            total = sum_cross_entropy(masked, weight, bias, labels, ignore_index=IGNORE_INDEX)
            return total / loss_divisor
        logits = self.compute_logits(masked_positions=masked_positions, **where)
        total = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        if teacher_logits is not None and self.distillation is not None:
            soft = soft_cross_entropy(
                logits,
                teacher_logits,
                labels != IGNORE_INDEX,
                temperature=self.distillation.temperature,
            )
            total = mix(total, soft, self.distillation.hardness)
        loss = total / loss_divisor
        if not count_correct:
            return loss
        return loss, (logits.argmax(dim=-1) == labels).sum()

    def compute_logits(self, *, masked_positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What the model says at the masked positions, fp32 [M, V]; see `forward`."""
        logits: torch.Tensor = self.mlm.cls(self._encode_masked(masked_positions, **inputs)).float()
        return logits

    def _encode_masked(
        self,
        masked_positions: torch.Tensor,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        **_: Any,
    ) -> torch.Tensor:
        """The encoder's output at the masked positions [M, D]."""
        hidden = self._encode(
            input_ids, position_ids=position_ids, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen
        )
        return hidden.flatten(0, 1).index_select(0, masked_positions)

    def _encode(
        self,
        input_ids: torch.Tensor,
        *,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        """Hidden states of the last layer, [R, T, D]."""
        return encode_packed(
            self.mlm.bert,
            input_ids,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
        )


def encode_packed(
    bert: BertModel,
    input_ids: torch.Tensor,
    *,
    position_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    token_type_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states of the last layer, [R, T, D]; the arguments are those of PretrainingModel."""
    rows, row_tokens = input_ids.shape
    check_boundaries(cu_seqlens, max_seqlen=max_seqlen, rows=rows, row_tokens=row_tokens)
    mask = None
    if max_seqlen > 1 and not _uses_varlen(bert, input_ids.device):
        mask = build_block_mask(cu_seqlens, rows=rows, row_tokens=row_tokens)
    hidden: torch.Tensor = bert(
        input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        token_type_ids=token_type_ids,
        cu_seq_lens_q=cu_seqlens,
        max_length_q=max_seqlen,
    ).last_hidden_state
    return hidden


def _uses_varlen(bert: BertModel, device: torch.device) -> bool:
    dtype = bert.embeddings.word_embeddings.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    head_dim = bert.config.hidden_size // bert.config.num_attention_heads
    return uses_varlen(device, dtype=dtype, head_dim=head_dim)


def build_bert_config(
    config: ModelConfig,
    *,
    vocab_size: int,
    pad_id: int,
    hidden_dropout: float = 0.1,
    attention_dropout: float = 0.1,
) -> BertConfig:
    """The same model in Hugging Face's words; the dropouts default to Hugging Face's."""
    return BertConfig(
        vocab_size=vocab_size,
        **{theirs: getattr(config, ours) for ours, theirs in DIMENSIONS.items()},
        initializer_range=config.initializer_range,
        hidden_dropout_prob=hidden_dropout,
        attention_probs_dropout_prob=attention_dropout,
        pad_token_id=pad_id,
    )


def build_model(
    config: ModelConfig,
    *,
    vocab_size: int,
    pad_id: int,
    hidden_dropout: float,
    attention_dropout: float,
    seed: int,
    distillation: DistillationConfig | None = None,
) -> PretrainingModel:
    """A fresh model on the CPU in fp32; its weights depend on the dimensions and `seed` alone."""
    bert_config = build_bert_config(
        config,
        vocab_size=vocab_size,
        pad_id=pad_id,
        hidden_dropout=hidden_dropout,
        attention_dropout=attention_dropout,
    )
    bert_config._attn_implementation = PACKED_ATTENTION
    # Weights are drawn from the CPU generator; torch.manual_seed would reset a GPU's as well.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        mlm = BertForMaskedLM(bert_config)
        if config.initialization == "structured":
            add_structure(mlm)
    return PretrainingModel(mlm, distillation=distillation)


def flops_per_token(
    config: ModelConfig, *, vocab_size: int, max_seq_len: int, mlm_probability: float
) -> float:
    """Floating point operations of one token's forward and backward, for the utilisation figure.

    6 for each weight of a matrix product (2 forward, 4 backward), 12 * D * max_seq_len a layer for
    attention, and the MLM head's 6 * D * (D + V) at a share `mlm_probability` of the tokens (1: at
    all). Segments shorter than `max_seq_len` attend to less, so this is the upper bound.
    """
    hidden = config.hidden_size
    layer = 6 * (4 * hidden**2 + 2 * hidden * config.intermediate_size) + 12 * hidden * max_seq_len
    head = 6 * hidden * (hidden + vocab_size)
    return config.num_layers * layer + mlm_probability * head


def list_weights(module: nn.Module) -> list[Weight]:
    """Every parameter of `module` under its canonical name, tied ones once, with its treatment."""
    return [
        Weight(name, parameter, is_prunable=is_prunable(name), decays=uses_weight_decay(name))
        for name, parameter in named_weights(module)
    ]
