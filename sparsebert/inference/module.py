"""SparseEncoder: takes the place of transformers' BertEncoder."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from sparsebert.inference import encoder_op  # noqa: F401 (defines torch.ops.sparsebert.encoder)
from sparsebert.inference.errors import BadInput
from sparsebert.inference.layout import LAYER_NAMES, MATRIX_NAMES
from sparsebert.inference.packing import PackedReader, pack


class SparseEncoder(nn.Module):
    """All layers of a BERT encoder in one call of the kernel.

    The packed weights are its only state: one uint8 buffer, so that copies, forks, pickles and
    moves between devices need nothing special. `state_dict` gives the dense tensors that they were
    made of, under BertEncoder's names, bit for bit; weights that were rounded to int8 have none.
    """

    packed: torch.Tensor

    def __init__(self, config: Any, packed: torch.Tensor) -> None:
        super().__init__()
        self.config = config  # the model's own: its settings are read at each forward
        self.register_buffer("packed", packed, persistent=False)
        self.training = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """As BertEncoder's: hidden_states [B, S, H] -> last_hidden_state [B, S, H]."""
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name, getattr(self.config, name, False)):
                raise BadInput(
                    f"{name} is set, but the sparse encoder keeps no layer's own results: unset it "
                    "in the call and in model.config, or use the dense model"
                )
        if encoder_hidden_states is not None or kwargs.get("cache") is not None:
            raise BadInput(
                "encoder_hidden_states or a cache was given, but the sparse encoder has neither "
                "cross attention nor a decoder: use the dense model"
            )
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise BadInput(
                "an input of the sparse encoder requires grad, but it has no backward: call the "
                "model under torch.no_grad(), or use the dense model"
            )
        where = {hidden_states.device.type, self.packed.device.type}
        if where != {"cpu"}:
            raise BadInput(
                f"the sparse encoder runs on CPUs, but it was moved to, or called on, "
                f'{(where - {"cpu"}).pop()}: move the model and its inputs back with .to("cpu")'
            )
        if not isinstance(attention_mask, torch.Tensor | None):
            raise BadInput(
                f"the attention mask is a {type(attention_mask).__name__}, which only flex "
                'attention reads: call model.set_attn_implementation("sdpa")'
            )
        output = torch.ops.sparsebert.encoder(hidden_states, attention_mask, self.packed)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=output)

    def train(self, mode: bool = True) -> "SparseEncoder":
        """There is evaluation only: True raises."""
        if mode:
            raise BadInput(
                "train(True) was called, but a sparse encoder has no backward: call model.eval(), "
                "and train the dense model"
            )
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """What print(model) shows."""
        reader = PackedReader(self.packed.cpu())
        entries, weights = reader.count_entries()
        values = "int8" if reader.is_rounded else "fp32"
        density = entries / weights
        return f"layers={reader.dimensions.layers}, density={density:.4f}, values={values}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        reader = PackedReader(self.packed.cpu())
        if reader.is_rounded:
            raise BadInput(
                "the weights were rounded to int8, so a state_dict would not be the model's: take "
                "the dense model's, or save this one with sparsebert.save_sparse"
            )
        for layer in range(reader.dimensions.layers):
            tensors = reader.tensors(layer)
            for name in LAYER_NAMES:
                destination[f"{prefix}layer.{layer}.{name}"] = tensors[name]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        reader = PackedReader(self.packed.cpu())
        if reader.is_rounded and any(key.startswith(prefix) for key in state_dict):
            raise BadInput(
                "the weights were rounded to int8: load the state_dict into the dense model, and "
                "call to_sparse again"
            )
        dimensions = reader.dimensions
        given = {}
        for layer in range(dimensions.layers):
            for name in LAYER_NAMES:
                key = f"{prefix}layer.{layer}.{name}"
                if key not in state_dict:
                    missing_keys.append(key)
                elif tuple(state_dict[key].shape) != dimensions.shape(name):
                    error_msgs.append(f"size mismatch for {key}: {list(state_dict[key].shape)}")
                else:
                    given[layer, name] = state_dict[key].detach().to("cpu", torch.float32)
        if strict:
            known = {f"{prefix}layer.{layer}.{name}" for layer, name in given}
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in known]
        if len(given) == dimensions.layers * len(LAYER_NAMES):
            self.packed = pack(dimensions, lambda layer, name: given[layer, name])
        elif given:
            error_msgs.append(f"{prefix}: a sparse encoder takes all of its tensors or none")


def count_density(packed: torch.Tensor) -> float:
    """Share of the encoder's matrix weights that are entries."""
    entries, weights = PackedReader(packed).count_entries()
    return entries / weights


__all__ = ["MATRIX_NAMES", "SparseEncoder", "count_density"]
