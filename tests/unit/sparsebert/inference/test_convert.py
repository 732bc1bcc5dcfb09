"""to_sparse: every head, what the model still does afterwards, and what is refused."""

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel, BertForMaskedLM, BertModel

from sparsebert import to_sparse
from sparsebert.inference import convert, levels
from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.module import SparseEncoder
from tests.unit.sparsebert.inference.models import (
    assert_as_exact,
    build,
    double,
    padding,
    tokens,
)

HEADS = [
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
]


def outputs(model: nn.Module, *inputs: Any, **more: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(*inputs, **more)
    return [value for value in found.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_head(name: str, attention: str) -> None:
    model = build(getattr(transformers, name), attn_implementation=attention)
    exact, dense = double(model), copy.deepcopy(model)
    assert to_sparse(model) is model
    ids, mask = tokens(3, 21), padding(3, 21)
    if name == "BertForMultipleChoice":
        ids, mask = ids[None], mask[None]
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids % 2)}
    triples = zip(
        outputs(model, **inputs), outputs(exact, **inputs), outputs(dense, **inputs), strict=True
    )
    for found, wanted, own in triples:
        if found.shape[:2] == (3, 21):  # by token: what padding gives is nobody's
            found, wanted, own = (output[mask.bool()] for output in (found, wanted, own))
        assert_as_exact(found, wanted, own)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_masks_that_users_give() -> None:
    model = build()
    dense = copy.deepcopy(model)
    to_sparse(model)
    ids = tokens(2, 18)
    by_query = torch.ones(2, 1, 18, 18, dtype=torch.bool).tril()
    for mask in (None, padding(2, 18).bool(), padding(2, 18).float(), by_query):
        found, pooled = outputs(model, ids, mask)
        wanted, wanted_pooled = outputs(dense, ids, mask)
        real = mask.bool() if mask is not None and mask.dim() == 2 else torch.ones(2, 18).bool()
        assert (found - wanted)[real].abs().max() < 2e-5
        assert (pooled - wanted_pooled).abs().max() < 2e-5


# What the model still does


def minus_zero_model(cls: Any = BertForMaskedLM) -> Any:
    """Half of its pruned weights are -0.0, as a mask of 0 times a negative weight gives."""
    model = build(cls, density=0.4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2 and weight.shape[0] != 90:
                weight.mul_(torch.where(torch.rand_like(weight) < 0.5, -1.0, 1.0))
    return model


def assert_bits_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name


def test_the_state_dict_is_the_dense_one_bit_for_bit() -> None:
    model = minus_zero_model()
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert_bits_equal(to_sparse(model).state_dict(), wanted)


def test_save_pretrained_writes_the_dense_weights(tmp_path: Path) -> None:
    model = minus_zero_model()
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_sparse(model).save_pretrained(tmp_path)
    loaded, told = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert_bits_equal(loaded.state_dict(), wanted)
    assert (tmp_path / "model.safetensors").is_file()
    assert AutoModel.from_pretrained(tmp_path).encoder.layer[0].output.dense.weight.any()


def test_load_state_dict_packs_anew() -> None:
    model, other = to_sparse(build(seed=1)), build(seed=2)
    model.load_state_dict(other.state_dict())
    ids = tokens(2, 9)
    assert torch.equal(outputs(model, ids)[0], outputs(to_sparse(other), ids)[0])
    with pytest.raises(RuntimeError, match="all of its tensors or none"):
        name = "encoder.layer.0.output.dense.bias"
        model.load_state_dict({name: other.state_dict()[name]}, strict=False)


def test_copies_and_pickles() -> None:
    model, ids = to_sparse(build()), tokens(2, 9)
    wanted = outputs(model, ids)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(other, ids)[0], wanted)
        assert other.encoder.packed.data_ptr() != model.encoder.packed.data_ptr()


def _in_child(x: torch.Tensor, packed: torch.Tensor, pipe: Any) -> None:
    # Only our operator: torch's own threads (GNU OpenMP) do not survive a fork.
    pipe.send(torch.ops.sparsebert.encoder(x, None, packed).numpy())


def test_a_fork_has_threads_of_its_own() -> None:
    packed, x = to_sparse(build()).encoder.packed, torch.randn(4, 33, 48)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        wanted = torch.ops.sparsebert.encoder(x, None, packed).numpy()  # the workers exist now
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=_in_child, args=(x, packed, there)
        )
        child.start()
        assert here.poll(60)
        assert (here.recv() == wanted).all()
        child.join()
    finally:
        torch.set_num_threads(threads)


def test_compile_and_export() -> None:
    model, ids, mask = to_sparse(build()), tokens(3, 21), padding(3, 21)
    wanted = outputs(model, ids, mask)[0]
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(ids, mask).last_hidden_state, wanted)
        exported = torch.export.export(model, (ids, mask)).module()
        assert torch.equal(exported(ids, mask).last_hidden_state, wanted)


def test_the_operator_is_registered_right() -> None:
    model = to_sparse(build())
    inputs = (torch.randn(2, 5, 48), None, model.encoder.packed)
    torch.library.opcheck(torch.ops.sparsebert.encoder.default, inputs)


def test_amx_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sparsebert.inference import library

    monkeypatch.setattr(library, "has_amx", lambda: True)
    library._tell_of_amx.cache_clear()
    with caplog.at_level("INFO"):
        to_sparse(build())
        to_sparse(build())
    told = [record.message for record in caplog.records if "AMX" in record.message]
    assert len(told) == 1 and "torch-bf16" in told[0]


# What is refused


@pytest.mark.parametrize("where", ["argument", "configuration"])
@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_layers_results_are_refused(name: str, where: str) -> None:
    model = to_sparse(build(attn_implementation="eager"))
    if where == "configuration":
        setattr(model.config, name, True)
    more = {name: True} if where == "argument" else {}
    with pytest.raises(BadInput, match=name):
        outputs(model, tokens(1, 5), **more)
    setattr(model.config, name, False)
    outputs(model, tokens(1, 5))


def test_training_is_refused() -> None:
    model = to_sparse(build())
    with pytest.raises(BadInput, match=r"train\(True\)"):
        model.train()
    x = torch.randn(1, 5, 48, requires_grad=True)
    with pytest.raises(BadInput, match="requires grad"):
        model(inputs_embeds=x)
    with torch.no_grad():
        model(inputs_embeds=x)


def test_half_precision_is_refused_at_the_next_forward() -> None:
    model = to_sparse(build())
    model.half()
    with pytest.raises(BadInput, match=r"float16.*model.float\(\)"):
        outputs(model, tokens(1, 5))
    outputs(model.float(), tokens(1, 5))


def test_another_device_is_refused_at_the_next_forward() -> None:
    """`meta` stands for a GPU: it too is only known by its name."""
    model = to_sparse(build())
    packed = model.encoder.packed
    model.encoder.packed = packed.to("meta")
    with pytest.raises(BadInput, match=r'meta.*to\("cpu"\)'):
        outputs(model, tokens(1, 5))
    model.encoder.packed = packed
    with pytest.raises(BadInput, match=r'meta.*to\("cpu"\)'):
        model.encoder(torch.randn(1, 5, 48, device="meta"))
    outputs(model, tokens(1, 5))


def test_a_block_mask_is_refused() -> None:
    model = to_sparse(build())
    with pytest.raises(BadInput, match="flex"):
        model.encoder(torch.randn(1, 5, 48), attention_mask=object())


@pytest.mark.parametrize("shape", [(3, 1, 7, 7), (2, 1, 7, 6), (2, 5, 7, 7), (7,), (2, 6)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = to_sparse(build())
    with pytest.raises(BadInput, match="attention mask has the shape"):
        model.encoder(torch.randn(2, 7, 48), attention_mask=torch.ones(shape, dtype=torch.bool))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = build(), build()


def pruned_with_torch() -> Any:
    from torch.nn.utils import prune

    model = build()
    prune.l1_unstructured(model.encoder.layer[0].output.dense, "weight", 0.5)
    return model


class Adapter(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def with_adapter() -> Any:
    model = build()
    model.encoder.layer[1].output.dense = Adapter(100, 48)
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: nn.Linear(3, 3), "holds 0 BertModels"),
        (Two, "holds 2 BertModels"),
        (lambda: "a folder", "not a str"),
        (lambda: to_sparse(build()), "sparse already"),
        (lambda: build(hidden_act="relu"), "hidden_act is 'relu'"),
        (lambda: build(hidden_act="gelu_new"), "hidden_act is 'gelu_new'"),
        (lambda: build(position_embedding_type="relative_key"), "position_embedding_type"),
        (lambda: build(is_decoder=True), "is_decoder is True"),
        (lambda: build().half(), "float16"),
        (lambda: build().bfloat16(), "bfloat16"),
        (lambda: build().to("meta"), r'to\("cpu"\)'),
        (pruned_with_torch, "prune.remove"),
        (with_adapter, "Adapter"),
        (lambda: build(density=1.0), r"density is 1.00.*nothing is gained.*force=True"),
    ],
)
def test_what_cannot_be_made_sparse(make: Any, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        to_sparse(make())


def test_a_dense_model_can_be_forced() -> None:
    model = build(density=1.0)
    dense, ids = copy.deepcopy(model), tokens(2, 9)
    found = outputs(to_sparse(model, force=True), ids)[0]
    assert (found - outputs(dense, ids)[0]).abs().max() < 2e-5


def test_without_a_kernel_the_model_stays_dense_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise KernelUnavailable("no C++ compiler was found: install one")

    monkeypatch.setattr(convert, "load_kernel", missing)
    with pytest.raises(KernelUnavailable, match="install one"):
        to_sparse(build())
    with pytest.warns(UserWarning, match="stays dense: no C\\+\\+ compiler"):
        model = to_sparse(build(), fallback=True)
    assert isinstance(model, BertModel) and not isinstance(model.encoder, SparseEncoder)
    assert not model.training


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.VARIABLE, "avx9000")
    with pytest.raises(BadInput, match="SPARSEBERT_KERNEL is 'avx9000'"):
        to_sparse(build())
