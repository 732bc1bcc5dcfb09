"""int8 values: what is rounded and by how much, that nothing else is lost, and what is refused."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from sparsebert import load_sparse, save_sparse, to_sparse
from sparsebert.inference import convert, library
from sparsebert.inference.build import cached_library
from sparsebert.inference.convert_folder import convert_folder
from sparsebert.inference.encoder_op import prepare_mask
from sparsebert.inference.errors import BadInput
from sparsebert.inference.levels import VARIABLE, supported_levels
from sparsebert.inference.library import Kernel
from sparsebert.inference.packing import PackedReader, pack
from sparsebert.inference.quantize import Int8Embedding, Int8Matrix, quantize_rows
from sparsebert.inference.sparse_file import SPARSE_FILE
from tests.unit.sparsebert.inference.models import build, padding, tokens
from tests.unit.sparsebert.inference.test_convert import HEADS, outputs
from tests.unit.sparsebert.inference.test_encoder import check_encoder, computed, dense, draw
from tests.unit.sparsebert.inference.test_sparse_file import rewrite

Mask = torch.Tensor | None


@pytest.fixture(scope="module", params=[n for n in supported_levels() if n.endswith("vnni")])
def int8_kernel(request: pytest.FixtureRequest) -> Kernel:
    """The kernel of each level that multiplies bytes."""
    found = Kernel(cached_library(request.param), request.param)
    assert found.has_int8
    return found


def pack_int8(bert: BertModel) -> torch.Tensor:
    def tensor(layer: int, name: str) -> torch.Tensor | Int8Matrix:
        found = bert.encoder.state_dict()[f"layer.{layer}.{name}"]
        return quantize_rows(found) if found.dim() == 2 else found

    return pack(check_encoder(bert), tensor)


class RoundedLinear(torch.nn.Module):
    """The oracle: weights rounded a row and inputs a token, multiplied in float64."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().double()
        self.weight = weight.clone()
        for row in self.weight:
            scale = row.abs().max() / 127
            row.copy_((row / scale).round() * scale if scale > 0 else row)
        self.bias = linear.bias.detach().double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        rounded = torch.where(scale > 0, (x / scale).round() * scale, x)
        return rounded @ self.weight.T + self.bias


def coarse_gelu(x: torch.Tensor) -> torch.Tensor:
    """vectors.h's, in float64: another one sends many more inputs to the next step."""
    coefficients = [0.0159879196, -0.0446476117, 0.066189155, -0.099315688, 0.156722903]
    z = (x * 0.5**0.5).clamp(-2.8, 2.8)
    g = torch.zeros_like(x)
    for c in [*coefficients, -0.240339071, 0.50254941]:
        g = g * (2 * z * z / 2.8**2 - 1) + c
    return x / 2 * (1 + g * z)


def test_the_coarse_gelu_is_near() -> None:
    x = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    assert (coarse_gelu(x) - torch.nn.functional.gelu(x)).abs().max() < 2e-4


def rounded_model(bert: BertModel) -> BertModel:
    bert = copy.deepcopy(bert).double()
    for layer in bert.encoder.layer:
        del layer.intermediate.intermediate_act_fn  # a module, which no function replaces
        layer.intermediate.intermediate_act_fn = coarse_gelu
    for part in bert.encoder.modules():
        for name, child in part.named_children():
            if isinstance(child, torch.nn.Linear):
                setattr(part, name, RoundedLinear(child))
    return bert


def check(
    kernel: Kernel, bert: BertModel, x: torch.Tensor, mask: Mask = None, threads: int = 1
) -> None:
    """The kernel rounds as the oracle does.

    Both sum the same integers. What comes before the rounding differs in the last bits of fp32, so
    that now and then an input that lies between two steps goes to the other one: a small share of
    the error that rounding has by itself.
    """
    heads = bert.config.num_attention_heads
    added = None if mask is None else prepare_mask(mask, x.shape[0], x.shape[1], heads)
    found = kernel.encode(x, added, pack_int8(bert), threads).double()
    kept = computed(mask, *x.shape[:2])
    wanted = dense(rounded_model(bert), x.double(), mask)[kept]
    exact = dense(copy.deepcopy(bert).double(), x.double(), mask)[kept]
    error = (found[kept] - wanted).pow(2).mean().sqrt().item()
    of_rounding = (exact - wanted).pow(2).mean().sqrt().item()
    assert error <= max(2e-6, 0.2 * of_rounding), f"{error:.1e} of {of_rounding:.1e}"
    assert (found[~kept] == 0).all()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 48, 63, 64, 65, 100, 200])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_length(int8_kernel: Kernel, batch: int, length: int) -> None:
    check(int8_kernel, build(), draw(batch, length, 48))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_threads(int8_kernel: Kernel, batch: int, threads: int) -> None:
    check(
        int8_kernel, build(), draw(batch, 37, 48), padding(batch, 37).bool()[:, None, None], threads
    )
    packed, x = pack_int8(build()), draw(batch, 64, 48)
    alone = int8_kernel.encode(x, None, packed, 1)
    assert torch.equal(int8_kernel.encode(x, None, packed, threads), alone)


@pytest.mark.parametrize(
    ("hidden", "inner", "heads"),
    [(1, 1, 1), (7, 13, 7), (65, 129, 5), (96, 384, 2), (200, 777, 8), (768, 3072, 12)],
)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_sizes_and_densities(
    int8_kernel: Kernel, hidden: int, inner: int, heads: int, density: float
) -> None:
    bert = build(
        density=density,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=1 if hidden > 500 else 2,
    )
    check(int8_kernel, bert, draw(2, 21, hidden))


@pytest.mark.parametrize("threads", [1, 2])
def test_padding_is_not_computed(int8_kernel: Kernel, threads: int) -> None:
    lengths = torch.tensor([50, 3, 64, 1, 130, 77, 20])
    keep = torch.arange(130) < lengths[:, None]
    packed, x = pack_int8(build()), draw(7, 130, 48)
    found = int8_kernel.encode(x, prepare_mask(keep, 7, 130, 4), packed, threads)
    for row, kept, output in zip(x, keep, found, strict=True):
        assert torch.equal(output[kept], int8_kernel.encode(row[kept][None], None, packed, 1)[0])
        assert (output[~kept] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_does_not_stay_unseen(int8_kernel: Kernel, value: float) -> None:
    x = draw(3, 20, 48)
    wanted = int8_kernel.encode(x, None, pack_int8(build()), 1)
    x[1, 4, 7] = value
    found = int8_kernel.encode(x, None, pack_int8(build()), 1)
    assert found[1].isnan().all()  # its own token, and by its value all that attend to it
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])


def test_zeros_and_tiny_inputs(int8_kernel: Kernel) -> None:
    x = draw(1, 20, 48)
    x[0, 3] = 0.0
    x[0, 4] *= 1e-42
    x[0, 5] *= 1e15
    check(int8_kernel, build(num_hidden_layers=1), x)


# Rounding


def test_rows_are_rounded_to_the_nearest_step() -> None:
    weight = draw(40, 30)
    weight[3] = 0.0
    weight[4] = 1e-44  # its scale is none
    matrix = quantize_rows(weight)
    error = (matrix.dequantize() - weight).abs()
    assert (error <= matrix.scales[:, None] / 2 * 1.0001 + 1e-43).all()
    assert matrix.values.abs().amax(1)[[0, 1, 2]].tolist() == [127] * 3
    again = quantize_rows(matrix.dequantize())
    assert torch.equal(again.values, matrix.values)
    with pytest.raises(BadInput, match="not finite"):
        quantize_rows(torch.tensor([[1.0, float("nan")]]))


def test_the_error_is_small() -> None:
    """Of a BERT with LayerNorm's usual outputs: hundredths of their size."""
    model, ids = build(num_hidden_layers=4, hidden_size=96), tokens(4, 30)
    wanted = outputs(model, ids)[0]
    found = outputs(to_sparse(model, values="int8"), ids)[0]
    error = (found - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
    assert 1e-4 < error < 0.05


# Models


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    """A saved model gives the same bits, and the dense one of its file the same weights."""
    cls = getattr(transformers, name)
    model = build(cls)
    ids = tokens(2, 9) if name != "BertForMultipleChoice" else tokens(2, 9)[None]
    wanted = outputs(model, ids)
    to_sparse(model, values="int8")
    save_sparse(model, tmp_path / "sparse")
    loaded, plain = load_sparse(tmp_path / "sparse"), load_sparse(tmp_path / "sparse", dense=True)
    assert type(loaded) is type(plain) is cls
    found = outputs(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, ids), found, strict=True))
    for a, b, c in zip(found, outputs(plain, ids), wanted, strict=True):
        size = c.pow(2).mean().sqrt()
        assert (a - c).pow(2).mean().sqrt() < 0.1 * size
        assert (b - c).pow(2).mean().sqrt() < 0.1 * size
    is_tied = name in ("BertForMaskedLM", "BertForPreTraining")
    bert = convert.find_bert(loaded)
    assert isinstance(bert.embeddings.word_embeddings, Int8Embedding) is not is_tied
    save_sparse(loaded, tmp_path / "again")
    assert digest(tmp_path / "sparse") == digest(tmp_path / "again")


def digest(folder: Path) -> str:
    """Of all that the file stores."""
    with safe_open(folder / SPARSE_FILE, framework="np") as file:
        return str(file.metadata()["digest"])


def test_a_folder_is_converted_as_a_model_is(tmp_path: Path) -> None:
    model = build(BertForSequenceClassification)
    model.save_pretrained(tmp_path / "dense")
    convert_folder(tmp_path / "dense", tmp_path / "a", values="int8")
    save_sparse(to_sparse(model, values="int8"), tmp_path / "b")
    ids = tokens(2, 9)
    pair = [outputs(load_sparse(tmp_path / folder), ids)[0] for folder in "ab"]
    assert torch.equal(*pair)


def test_an_eighth_of_dense_at_the_size_of_bert_base(tmp_path: Path) -> None:
    """One layer of it, and as many words as leave 22 % of the weights outside the encoder."""
    model = build(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=1,
        vocab_size=2300,
        max_position_embeddings=40,
    )
    model.pooler = None
    total = sum(tensor.numel() for tensor in model.state_dict().values()) * 4
    save_sparse(to_sparse(model, values="int8"), tmp_path / "sparse")
    assert (tmp_path / "sparse" / SPARSE_FILE).stat().st_size < total / 8


def test_the_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    """Read without our code, as docs/formats.md describes it."""
    model = build()
    wanted = {n: t.clone() for n, t in model.state_dict().items()}
    save_sparse(to_sparse(model, values="int8"), tmp_path / "sparse")
    with safe_open(tmp_path / "sparse" / SPARSE_FILE, framework="np") as file:
        assert file.metadata()["format_version"] == "2"
        shapes = json.loads(file.metadata()["shapes"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, tensor in wanted.items():
        if name in shapes:
            rows, columns = shapes[name]
            mask = np.unpackbits(stored[f"{name}.mask"], count=rows * columns, bitorder="little")
            found = np.zeros((rows, columns), dtype=np.float32)
            found[mask.reshape(rows, columns) == 1] = stored[f"{name}.values"]
            found *= stored[f"{name}.scales"][:, None]
        elif name == "embeddings.word_embeddings.weight":
            found = stored[name] * stored[f"{name}.scales"][:, None]
        else:
            found = stored[name]
        step = np.abs(tensor.numpy()).max() / 127
        assert np.abs(found - tensor.numpy()).max() <= (
            step if found is not stored.get(name) else 0
        )


def test_copies_and_pickles() -> None:
    model, ids = to_sparse(build(), values="int8"), tokens(2, 9)
    wanted = outputs(model, ids)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(other, ids)[0], wanted)
    assert "values=int8" in repr(model) and "density=0.09" in repr(model)


def test_a_state_dict_is_refused(tmp_path: Path) -> None:
    model = to_sparse(build(), values="int8")
    with pytest.raises(BadInput, match="rounded to int8.*save_sparse"):
        model.state_dict()
    with pytest.raises(BadInput, match="rounded to int8"):
        model.save_pretrained(tmp_path / "dense")
    with pytest.raises(BadInput, match="rounded to int8.*to_sparse again"):
        model.load_state_dict(build().state_dict(), strict=False)
    with pytest.raises(BadInput, match="values is 'int4': choose fp32 or int8"):
        to_sparse(build(), values="int4")


def test_a_processor_without_int8_computes_the_rounded_weights_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "scalar")
    model, ids = build(), tokens(2, 9)
    to_sparse(model, values="int8")
    assert "no dot product of bytes" in caplog.text
    reader = PackedReader(model.encoder.packed)
    assert reader.is_rounded and not reader.is_int8
    save_sparse(model, tmp_path / "sparse")
    plain = load_sparse(tmp_path / "sparse", dense=True)
    assert (outputs(model, ids)[0] - outputs(plain, ids)[0]).abs().max() < 2e-5
    # The file is the one that any processor writes.
    monkeypatch.delenv(VARIABLE)
    save_sparse(to_sparse(build(), values="int8"), tmp_path / "other")
    assert digest(tmp_path / "sparse") == digest(tmp_path / "other")


def test_weights_for_another_processor_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickled model that meets a kernel without int8."""
    if not library.load_kernel().has_int8:
        pytest.skip("this processor has no dot product of bytes")
    model, ids = to_sparse(build(), values="int8"), tokens(2, 9)
    monkeypatch.setenv(VARIABLE, "scalar")
    with pytest.raises(BadInput, match=r"int8.*this processor.*to_sparse"):
        outputs(model, ids)


NAME = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    "name",
    [f"{NAME}.scales", f"{NAME}.values", "embeddings.word_embeddings.weight"]
    + ["embeddings.word_embeddings.weight.scales"],
)
def test_every_altered_part_is_named(tmp_path: Path, name: str) -> None:
    save_sparse(to_sparse(build(), values="int8"), tmp_path / "sparse")

    def flip(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        tensors[name].view(torch.uint8).reshape(-1)[7] ^= 1

    rewrite(tmp_path / "sparse", flip)
    for is_dense in (False, True):
        with pytest.raises(BadInput, match=f"damaged at {name}"):
            load_sparse(tmp_path / "sparse", dense=is_dense)


def test_masked_language_models_keep_their_table(tmp_path: Path) -> None:
    model = build(BertForMaskedLM)
    table = model.bert.embeddings.word_embeddings.weight.clone()
    save_sparse(to_sparse(model, values="int8"), tmp_path / "sparse")
    assert torch.equal(load_sparse(tmp_path / "sparse").cls.predictions.decoder.weight, table)
