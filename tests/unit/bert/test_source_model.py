"""What a Hugging Face folder is taken for: one that transformers wrote, with pooler and heads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining

from bert.configuration import ModelConfig
from bert.restoring import transfer_start
from bert.source_model import describe_source
from bert.tasks.model import build_task_model
from bert.weights import is_prunable
from distributed.errors import BadInput

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "Cat"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A cased BERT of two layers, as its authors would publish it."""
    folder = tmp_path / "foreign"
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=20,
    )  # fmt: skip
    BertForPreTraining(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def test_dimensions_and_vocabulary_come_with_it(foreign: Path) -> None:
    found = describe_source(foreign, vocab=None)
    assert found.config == ModelConfig(
        hidden_size=16, num_layers=2, num_heads=4, intermediate_size=24,
        max_position_embeddings=20, vocab=foreign / "vocab.txt",
    )  # fmt: skip
    assert not found.is_pruned and not found.vocabulary.lower_case  # it has a capital letter
    settings = json.dumps({"do_lower_case": True})
    (foreign / "tokenizer_config.json").write_text(settings)
    assert describe_source(foreign, vocab=None).vocabulary.lower_case


def test_encoder_and_pooler_are_taken_and_heads_are_not(foreign: Path) -> None:
    found = describe_source(foreign, vocab=None)
    module = build_task_model(
        found.config, kind="classification", num_outputs=3, vocab_size=len(WORDS), pad_id=0,
        hidden_dropout=0.0, attention_dropout=0.0, seed=1,
    )  # fmt: skip
    start = transfer_start(foreign, module, found.config, sparsity=None, encoder_only=True)
    theirs = load_file(foreign / "model.safetensors")
    for name in ("pooler.dense.weight", "encoder.layer.1.output.dense.weight"):
        want = theirs[f"bert.{name}"].flatten()
        assert torch.equal(start.weights(name, 0, want.numel()), want)
    own = module.head.weight.detach().flatten()
    assert torch.equal(start.weights("classifier.weight", 0, own.numel()), own)


@pytest.mark.parametrize(("share", "pruned"), [(0.002, False), (0.5, True)])
def test_a_few_zeros_are_chance(foreign: Path, share: float, pruned: bool) -> None:
    weights = load_file(foreign / "model.safetensors")
    draw = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if is_prunable(name.removeprefix("bert.")):
            weight[torch.rand(weight.shape, generator=draw) < share] = 0.0
    save_file(weights, foreign / "model.safetensors", metadata={"format": "pt"})
    assert describe_source(foreign, vocab=None).is_pruned == pruned


def test_a_folder_without_its_vocabulary(foreign: Path, tmp_path: Path) -> None:
    (foreign / "vocab.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(BadInput, match=r"the vocabulary .*vocab.txt of .* set model.vocab"):
        describe_source(foreign, vocab=None)
    assert describe_source(foreign, vocab=tmp_path / "elsewhere.txt").vocabulary.size == len(WORDS)
    (tmp_path / "elsewhere.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(BadInput, match=r"has 14 words and .*elsewhere.txt has 13"):
        describe_source(foreign, vocab=tmp_path / "elsewhere.txt")
