"""Names and shapes of the weights, against a real model."""

import pytest
import torch
from transformers import BertForMaskedLM

from bert.architecture import named_weights, weight_shapes
from bert.config import ModelConfig
from bert.model import build_bert_config


@pytest.mark.parametrize("layers", [1, 12])
def test_shapes_are_those_of_the_model(layers: int) -> None:
    config = ModelConfig(
        vocab="v",  # type: ignore[arg-type]
        num_layers=layers,
        hidden_size=24,
        intermediate_size=40,
        max_position_embeddings=77,
    )
    with torch.device("meta"):
        model = BertForMaskedLM(build_bert_config(config, vocab_size=101, pad_id=0))
    expected = {name: tuple(weight.shape) for name, weight in named_weights(model)}
    shapes = weight_shapes(config, vocab_size=101)
    assert list(shapes.items()) == list(expected.items())
