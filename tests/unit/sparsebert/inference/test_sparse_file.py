"""sparse.safetensors: bit-exact, small, and refused by name when it is damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, BertForMaskedLM, BertModel

from sparsebert import load_sparse, save_sparse, to_sparse
from sparsebert.inference.convert_folder import convert_folder
from sparsebert.inference.errors import BadInput
from sparsebert.inference.sparse_file import SPARSE_FILE
from tests.unit.sparsebert.inference.models import build, tokens
from tests.unit.sparsebert.inference.test_convert import (
    HEADS,
    assert_bits_equal,
    minus_zero_model,
    outputs,
)


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    cls = getattr(transformers, name)
    model = minus_zero_model(cls)
    wanted = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    ids = tokens(2, 9) if name != "BertForMultipleChoice" else tokens(2, 9)[None]
    dense = outputs(model, ids)
    save_sparse(to_sparse(model), tmp_path / "sparse")
    loaded, plain = load_sparse(tmp_path / "sparse"), load_sparse(tmp_path / "sparse", dense=True)
    assert type(loaded) is type(plain) is cls
    assert_bits_equal(loaded.state_dict(), wanted)
    assert_bits_equal(plain.state_dict(), wanted)
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(loaded, ids), outputs(model, ids), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(outputs(plain, ids), dense, strict=True))


def test_automodel_fails_on_the_folder(tmp_path: Path) -> None:
    save_sparse(to_sparse(build()), tmp_path / "sparse")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModel.from_pretrained(tmp_path / "sparse")


def test_a_third_of_dense_at_the_size_of_bert_base(tmp_path: Path) -> None:
    """One layer of it, and as many words as leave 22 % of the weights outside the encoder."""
    model = build(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=1,
        vocab_size=1300,
    )
    total = sum(tensor.numel() for tensor in model.state_dict().values()) * 4
    save_sparse(to_sparse(model), tmp_path / "sparse")
    assert (tmp_path / "sparse" / SPARSE_FILE).stat().st_size < total / 2.9


def test_the_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    """Read without our code, as docs/formats.md describes it."""
    model = minus_zero_model(BertModel)
    wanted = {n: t.clone() for n, t in model.state_dict().items()}
    save_sparse(to_sparse(model), tmp_path / "sparse")
    with safe_open(tmp_path / "sparse" / SPARSE_FILE, framework="np") as file:
        shapes = json.loads(file.metadata()["shapes"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in wanted.items():
        if name not in shapes:
            assert stored[name].tobytes() == tensor.numpy().tobytes()
            continue
        rows, columns = shapes[name]
        mask = np.unpackbits(stored[f"{name}.mask"], count=rows * columns, bitorder="little")
        signs = np.unpackbits(stored[f"{name}.signs"], count=rows * columns, bitorder="little")
        dense = np.where(signs == 1, np.float32(-0.0), np.float32(0.0))
        dense[mask == 1] = stored[f"{name}.values"]
        assert dense.tobytes() == tensor.numpy().tobytes()


def test_live_zeros_survive(tmp_path: Path) -> None:
    """A folder's keep mask says more than its zeros, and goes through every step."""
    from bert.folders.keep_mask import save_keep_masks

    model = build()
    matrices = {
        n: t for n, t in model.state_dict().items() if t.dim() == 2 and n.startswith("encoder.")
    }
    masks = {name: weight != 0 for name, weight in matrices.items()}
    name = "encoder.layer.1.intermediate.dense.weight"
    masks[name][3, 5:9] = True
    model.save_pretrained(tmp_path / "dense")
    save_keep_masks(masks, digest="00ff", path=tmp_path / "dense" / "keep_mask.safetensors")
    convert_folder(tmp_path / "dense", tmp_path / "sparse")
    save_sparse(load_sparse(tmp_path / "sparse"), tmp_path / "again")
    for folder in ("sparse", "again"):
        with safe_open(tmp_path / folder / SPARSE_FILE, framework="pt") as file:
            packed = file.get_tensor(f"{name}.mask").numpy()
            digest = file.metadata().get("mask_digest")
        bits = np.unpackbits(packed, count=100 * 48, bitorder="little").reshape(100, 48)
        assert (bits.astype(bool) == masks[name].numpy()).all()
        assert digest == ("00ff" if folder == "sparse" else None)


def test_a_folder_in_shards(tmp_path: Path) -> None:
    model = build(BertForMaskedLM)
    model.save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    (tmp_path / "dense" / "vocab.txt").write_text("[PAD]\n")
    density = convert_folder(tmp_path / "dense", tmp_path / "sparse")
    assert 0.05 < density < 0.15
    assert (tmp_path / "sparse" / "vocab.txt").read_text() == "[PAD]\n"
    assert not list((tmp_path / "sparse").glob("model*"))
    wanted = model.state_dict()
    assert_bits_equal(load_sparse(tmp_path / "sparse", dense=True).state_dict(), wanted)


# Damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_sparse(to_sparse(minus_zero_model()), tmp_path / "sparse")
    return tmp_path / "sparse"


def rewrite(folder: Path, change: Any) -> None:
    """Apply `change(tensors, metadata)` to the file."""
    with safe_open(folder / SPARSE_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, folder / SPARSE_FILE, metadata=metadata)


NAME = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize("part", [".mask", ".values", ".signs"])
def test_every_altered_part_is_named(saved: Path, part: str) -> None:
    def flip(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        tensors[NAME + part].view(torch.uint8)[7] ^= 1

    rewrite(saved, flip)
    for dense in (False, True):
        with pytest.raises(BadInput, match=f"damaged at {NAME}{part}"):
            load_sparse(saved, dense=dense)


def test_an_altered_dense_tensor_is_named(saved: Path) -> None:
    rewrite(saved, lambda t, m: t["bert.embeddings.LayerNorm.weight"].add_(1e-3))
    with pytest.raises(BadInput, match=r"damaged at bert\.embeddings\.LayerNorm\.weight"):
        load_sparse(saved)


@pytest.mark.parametrize("size", [0, 7, 100, 5000, -1, -4000])
def test_a_truncated_file_is_refused(saved: Path, size: int) -> None:
    file = saved / SPARSE_FILE
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadInput, match=r"sparse\.safetensors is missing or damaged"):
        load_sparse(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t, m: m.update(format_version="3"), "format version 1 or 2"),
        (lambda t, m: m.update(format_version="2"), r"damaged at .*\.values"),
        (lambda t, m: m.pop("format"), "format version 1"),
        (lambda t, m: m.update(digest="0" * 64), "damaged in its header"),
        (lambda t, m: m.update(sha256="{}"), "damaged in its header"),
        (lambda t, m: m.update(shapes="[1"), "damaged in its header"),
        (lambda t, m: t.pop(f"{NAME}.values"), "damaged in its header"),
        (lambda t, m: m.update(model_class="os"), "is no BERT class"),
    ],
)
def test_an_altered_header_is_refused(saved: Path, change: Any, named: str) -> None:
    rewrite(saved, change)
    with pytest.raises(BadInput, match=named):
        load_sparse(saved)


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"]
)
def test_another_configuration_is_refused(saved: Path, field: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    config[field] *= 2
    (saved / "config.json").write_text(json.dumps(config))
    for dense in (False, True):
        with pytest.raises(BadInput, match="fit config.json|lacks"):
            load_sparse(saved, dense=dense)


def test_folders_that_are_none(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(BadInput, match="has no sparse.safetensors: give a folder"):
        load_sparse(tmp_path / "nothing")
    build().save_pretrained(tmp_path / "dense")
    with pytest.raises(BadInput, match="dense Hugging Face folder"):
        load_sparse(tmp_path / "dense")
    with pytest.raises(BadInput, match="exists already"):
        save_sparse(load_sparse(saved), saved)
    with pytest.raises(BadInput, match="encoder is dense"):
        save_sparse(build(), tmp_path / "new")
    with pytest.raises(BadInput, match="a Linear cannot be saved"):
        save_sparse(torch.nn.Linear(2, 2), tmp_path / "new")
    with pytest.raises(BadInput, match="no config.json"):
        convert_folder(tmp_path / "nothing", tmp_path / "new")
    build().half().save_pretrained(tmp_path / "half")
    with pytest.raises(BadInput, match="float16"):
        convert_folder(tmp_path / "half", tmp_path / "new")
    (tmp_path / "dense" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BadInput, match="is no BERT"):
        convert_folder(tmp_path / "dense", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))
