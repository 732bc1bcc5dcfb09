from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from bert.architecture import canonical_name, is_prunable, named_weights, uses_weight_decay
from bert.config import ModelConfig
from bert.model import PretrainingModel, build_bert_config, build_model, flops_per_token

# fp32, relative to the largest element: the head runs on [M, D] instead of [R * T, D], so BLAS sums
# in another order. Seen: 7e-7.
GRADIENT_BOUND = 5e-6
ROWS, ROW_TOKENS, VOCAB_SIZE = 3, 12, 33

Batch = dict[str, torch.Tensor | int | float]


def build_batch(*, seed: int = 0, rows: int = ROWS) -> Batch:
    """Rows of two segments (5 and 7 tokens) with two masked tokens a row."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.arange(rows) * ROW_TOKENS
    borders = torch.stack([starts, starts + 5], dim=1).flatten()
    return {
        "input_ids": torch.randint(5, VOCAB_SIZE, (rows, ROW_TOKENS), generator=generator),
        "position_ids": torch.cat([torch.arange(5), torch.arange(7)]).repeat(rows, 1),
        "cu_seqlens": torch.cat([borders, torch.tensor([rows * ROW_TOKENS])]).int(),
        "max_seqlen": 7,
        "masked_positions": torch.stack([starts + 2, starts + 9], dim=1).flatten(),
        "labels": torch.randint(5, VOCAB_SIZE, (2 * rows,), generator=generator),
        "loss_divisor": 2 * rows,
    }


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in named_weights(model)}
    assert all(gradient is not None for gradient in found.values())
    return found


def assert_gradients_close(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        # A key bias has no gradient in theory (softmax does not see it): what is left is rounding.
        scale = largest if name.endswith("key.bias") else gradient.abs().max().item()
        error = (actual[name] - gradient).abs().max().item()
        assert error <= GRADIENT_BOUND * scale, (name, error / scale)


# The configuration


def test_the_defaults_are_bert_base() -> None:
    config = build_bert_config(ModelConfig(vocab=Path("v")), vocab_size=30522, pad_id=0)
    assert config.to_diff_dict() == BertConfig().to_diff_dict()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("num_heads", 5, r"model\.hidden_size \(16\) is not a multiple of model\.num_heads \(5\)"),
        ("num_layers", 0, "num_layers"),
        ("attention", "causal", "attention"),
        ("hidden_sise", 16, "hidden_sise"),
    ],
)
def test_a_bad_configuration_is_refused(field: str, value: object, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ModelConfig(**{"hidden_size": 16, "num_heads": 4, "vocab": "v", field: value})


# Initial weights


def test_initial_weights_depend_on_the_seed_alone(tiny_config: ModelConfig) -> None:
    def build(seed: int, dropout: float = 0.0) -> dict[str, torch.Tensor]:
        return build_model(
            tiny_config,
            vocab_size=VOCAB_SIZE,
            pad_id=0,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            seed=seed,
        ).state_dict()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    torch.rand(5)
    second, other = build(7, dropout=0.1), build(8)
    assert all(torch.equal(first[name], second[name]) for name in first)
    query = "mlm.bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(first[query], other[query])
    assert 0.015 < first[query].std() < 0.025  # BERT's initializer_range is 0.02


# The loss


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("chunk_rows", [4, 100])
def test_loss_and_gradients_equal_hugging_face(
    chunk_rows: int,
    implementation: str,
    build_tiny: Callable[..., PretrainingModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One segment a row, so that plain BERT sees the same input; its head runs on every token."""
    monkeypatch.setattr("bert.masked_loss._CPU_CHUNK_BYTES", 4 * VOCAB_SIZE * chunk_rows)
    model = build_tiny()
    config = BertConfig(**model.mlm.config.to_diff_dict())
    config._attn_implementation = implementation
    plain = BertForMaskedLM(config)
    plain.load_state_dict(model.mlm.state_dict())
    batch = build_batch()
    batch["position_ids"] = torch.arange(ROW_TOKENS).repeat(ROWS, 1)
    batch["cu_seqlens"] = torch.arange(ROWS + 1, dtype=torch.int32) * ROW_TOKENS
    batch["max_seqlen"] = ROW_TOKENS
    labels = torch.full((ROWS * ROW_TOKENS,), -100)
    labels[batch["masked_positions"]] = batch["labels"]

    loss = model(**batch)
    expected = plain(batch["input_ids"], labels=labels.view(ROWS, ROW_TOKENS)).loss
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)

    loss.backward()
    expected.backward()
    assert_gradients_close(gradients(model), gradients(plain))


def test_micro_batches_add_up_to_the_batch(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny()
    whole = build_batch(rows=2)
    model(**whole).backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    parts = [build_batch(rows=1) for _ in range(2)]
    for row, part in enumerate(parts):
        part["input_ids"] = whole["input_ids"][row : row + 1]
        part["labels"] = whole["labels"][2 * row : 2 * row + 2]
        part["loss_divisor"] = 4
        model(**part).backward()
    assert_gradients_close(gradients(model), expected)


@pytest.mark.parametrize("masked", [0, 4])
def test_without_a_label_loss_and_all_gradients_are_zero(
    masked: int, build_tiny: Callable[..., PretrainingModel]
) -> None:
    model = build_tiny()
    batch = build_batch()
    batch["input_ids"] = torch.zeros(ROWS, ROW_TOKENS, dtype=torch.long)  # all padding
    batch["masked_positions"] = torch.zeros(masked, dtype=torch.long)
    batch["labels"] = torch.full((masked,), -100)
    loss = model(**batch)
    loss.backward()
    assert loss.item() == 0
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


def test_ignored_labels_change_nothing(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny()
    batch = build_batch()
    loss, correct = model(**batch, count_correct=True)
    batch["masked_positions"] = torch.cat([batch["masked_positions"], torch.tensor([0, 0, 3])])
    batch["labels"] = torch.cat([batch["labels"], torch.full((3,), -100)])
    padded_loss, padded_correct = model(**batch, count_correct=True)
    torch.testing.assert_close(padded_loss, loss, rtol=1e-6, atol=0)
    assert padded_correct == correct


def test_correct_tokens_are_counted(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny()
    batch = build_batch()
    hidden = model._encode(
        **{key: batch[key] for key in ("input_ids", "position_ids", "cu_seqlens", "max_seqlen")}
    )
    best = model.mlm.cls(hidden.flatten(0, 1)).argmax(dim=-1)
    batch["labels"] = best[batch["masked_positions"]]
    loss, correct = model(**batch, count_correct=True)
    assert correct.dtype == torch.int64 and correct == 2 * ROWS
    torch.testing.assert_close(loss, model(**batch), rtol=1e-6, atol=0)  # the head of Hugging Face
    batch["labels"] = torch.where(torch.arange(2 * ROWS) == 1, -100, batch["labels"])
    assert model(**batch, count_correct=True)[1] == 2 * ROWS - 1


def test_bf16_weights_give_a_fp32_loss(build_tiny: Callable[..., PretrainingModel]) -> None:
    batch = build_batch()
    exact = build_tiny()(**batch)
    loss = build_tiny().bfloat16()(**batch)
    assert loss.dtype == torch.float32
    # The blown-up weights make logits of order 10; bf16 has 8 bits.
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)


# Names


def test_a_weight_has_one_name_in_every_model(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny()
    config = BertConfig(**model.mlm.config.to_diff_dict())

    class Wrapper(nn.Module):  # as DistributedDataParallel and DeepSpeed wrap
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    def encoder_names(module: nn.Module) -> list[str]:
        names = [name for name, _ in named_weights(module)]
        return [name for name in names if name.startswith(("encoder.", "embeddings."))]

    bare = encoder_names(BertModel(config, add_pooling_layer=False))
    assert len(bare) == 2 * 16 + 5
    for other in (
        model,
        model.mlm,
        Wrapper(model),
        Wrapper(Wrapper(model)),
        BertForSequenceClassification(config),
    ):
        assert encoder_names(other) == bare
    assert [name for name, _ in named_weights(BertForSequenceClassification(config))][-4:] == [
        "pooler.dense.weight",
        "pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_tied_weight_comes_once(build_tiny: Callable[..., PretrainingModel]) -> None:
    model = build_tiny()
    weights = dict(named_weights(model))
    predictions = model.mlm.cls.predictions
    assert weights["embeddings.word_embeddings.weight"] is predictions.decoder.weight
    assert weights["cls.predictions.bias"] is predictions.decoder.bias
    assert not any("decoder" in name for name in weights)
    assert len({id(weight) for weight in weights.values()}) == len(weights)


def test_only_prefixes_are_removed() -> None:
    assert canonical_name("module.mlm.bert.pooler.dense.bias") == "pooler.dense.bias"
    assert canonical_name("_orig_mod.module.bert.x") == "x"
    assert canonical_name("classifier.bert.weight") == "classifier.bert.weight"
    assert canonical_name("bertha.weight") == "bertha.weight"


def test_a_collision_is_refused() -> None:
    twins = nn.ModuleDict({"bert": nn.Linear(2, 2), "mlm": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="two parameters have the canonical name weight"):
        named_weights(twins)


def test_bert_base_has_84_934_656_prunable_weights() -> None:
    config = build_bert_config(ModelConfig(vocab=Path("v")), vocab_size=30522, pad_id=0)
    with torch.device("meta"):
        model = BertForMaskedLM(config)
    weights = named_weights(model)
    prunable = {name: weight for name, weight in weights if is_prunable(name)}
    assert len(prunable) == 6 * 12
    assert sum(weight.numel() for weight in prunable.values()) == 84_934_656
    assert sum(weight.numel() for _, weight in weights) == 109_514_298
    linears = {
        f"{canonical_name(name)}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".encoder." in name
    }
    assert prunable.keys() == linears


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.0.output.dense.bias",
        "encoder.layer.0.output.LayerNorm.weight",
        "embeddings.word_embeddings.weight",
        "pooler.dense.weight",
        "cls.predictions.transform.dense.weight",
        "bert.encoder.layer.0.output.dense.weight",  # not canonical
        "encoder.layer.0.output.dense.weight.exp_avg",
    ],
)
def test_nothing_else_is_prunable(name: str) -> None:
    assert not is_prunable(name)


def test_biases_and_layer_norms_do_not_decay(build_tiny: Callable[..., PretrainingModel]) -> None:
    for name, weight in named_weights(build_tiny()):
        assert uses_weight_decay(name) == (weight.ndim == 2), name


# FLOPs


@pytest.mark.parametrize(
    ("max_seq_len", "mlm_probability", "expected"),
    [(512, 0.15, 588e6), (512, 1.0, 710e6), (128, 0.15, 545e6), (128, 1.0, 668e6)],
)
def test_flops_of_bert_base(max_seq_len: int, mlm_probability: float, expected: float) -> None:
    flops = flops_per_token(
        ModelConfig(vocab=Path("v")),
        vocab_size=30522,
        max_seq_len=max_seq_len,
        mlm_probability=mlm_probability,
    )
    assert flops == pytest.approx(expected, rel=0.01)
