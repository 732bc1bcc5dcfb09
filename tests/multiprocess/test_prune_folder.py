"""`sparsebert prune` on several processes: numpy's masks, whatever the number of processes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from bert.architecture import canonical_name, is_prunable
from bert.folders.keep_mask import KEEP_MASK_FILE, load_keep_masks
from bert.folders.prune import prune_folder
from bert.folders.pruned_output import PruneReport
from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig
from tests.multiprocess import pool
from tests.unit.bert.folders.writing import Tensors, change_config, change_weights
from tests.unit.sparsity.oracle import expected_digest, expected_keep


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    config = BertConfig(
        vocab_size=50,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=16,
    )
    torch.manual_seed(1)
    BertForMaskedLM(config).save_pretrained(folder)
    (folder / "notes.txt").write_text("kept")
    (folder / "README.md").write_text("speaks of the dense model")
    return folder


@pytest.fixture(scope="module")
def sharded(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    BertForMaskedLM.from_pretrained(dense).save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 2
    return folder


def prune(source: str, output: str, options: dict[str, Any], match: list[str]) -> Any:
    import torch.distributed as dist

    config = SparsityConfig.model_validate({"schedule": "one_shot", **options})
    try:
        return prune_folder(
            Path(source),
            Path(output),
            config,
            match=match,
            rank=dist.get_rank(),
            ranks=dist.get_world_size(),
        )
    except BadInput as error:
        return str(error)


def run(
    world_size: int, source: Path, output: Path, match: tuple[str, ...] = (), **options: Any
) -> PruneReport | str:
    answers = pool.run(world_size, prune, str(source), str(output), options, list(match))
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for f in sorted(folder.glob("*.safetensors")) if f.name != KEEP_MASK_FILE
            for n, t in load_file(f).items()}  # fmt: skip


def content_hash(folder: Path) -> str:
    sha = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.name != KEEP_MASK_FILE):
        sha.update(file.name.encode() + file.read_bytes())
    return sha.hexdigest()


def oracle(source: Path, share: float) -> dict[str, np.ndarray]:
    weights = {
        canonical_name(n): t.numpy().reshape(-1)
        for n, t in sorted(read_all(source).items())
        if is_prunable(canonical_name(n))
    }
    assert len(weights) == 12
    return expected_keep(weights, round(share * sum(w.size for w in weights.values())))


def test_masks_are_numpys_for_any_number_of_processes(dense: Path, tmp_path: Path) -> None:
    keep = oracle(dense, 0.9)
    before, hashes = read_all(dense), set()
    for world_size in (1, 2, 3):
        output = tmp_path / f"out{world_size}"
        report = run(world_size, dense, output, final_sparsity=0.9)
        assert isinstance(report, PruneReport)
        assert report.digest == expected_digest(keep)
        assert report.pruned == sum(int((~k).sum()) for k in keep.values())
        for name, tensor in read_all(output).items():
            kept = keep.get(canonical_name(name))
            mask = torch.ones_like(tensor) if kept is None else torch.from_numpy(kept * 1.0)
            assert torch.equal(tensor, before[name] * mask.view_as(tensor)), name
        masks, digest = load_keep_masks(output / KEEP_MASK_FILE)
        assert digest == report.digest
        assert all(np.array_equal(masks[n].numpy().reshape(-1), keep[n]) for n in keep)
        assert (output / "notes.txt").read_text() == "kept"
        card = (output / "README.md").read_text()
        assert report.digest in card and "dense model" not in card
        assert (output / "README.source.md").read_text() == "speaks of the dense model"
        (output / "README.md").unlink()  # it names its folder
        hashes.add(content_hash(output))
    assert len(hashes) == 1
    BertForMaskedLM.from_pretrained(output)


def test_shards_stay_shards_with_the_same_masks(dense: Path, sharded: Path, tmp_path: Path) -> None:
    whole = run(1, dense, tmp_path / "whole", final_sparsity=0.5)
    parts = run(2, sharded, tmp_path / "parts", final_sparsity=0.5)
    assert isinstance(whole, PruneReport) and isinstance(parts, PruneReport)
    assert whole.digest == parts.digest
    assert {f.name for f in sharded.iterdir()} < {f.name for f in (tmp_path / "parts").iterdir()}
    left, right = (
        BertForMaskedLM.from_pretrained(tmp_path / n).state_dict() for n in ("whole", "parts")
    )
    assert all(torch.equal(left[n], right[n]) for n in left)


def test_half_precision_stays_and_ties_are_exact(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "bf16"
    BertForMaskedLM.from_pretrained(dense).bfloat16().save_pretrained(source)
    digests = set()
    for world_size in (1, 3):
        report = run(world_size, source, tmp_path / f"{world_size}", final_sparsity=0.7)
        assert isinstance(report, PruneReport) and report.ties > 1
        digests.add(report.digest)
    assert len(digests) == 1
    assert {t.dtype for t in read_all(tmp_path / "3").values()} == {torch.bfloat16}


def test_a_pruned_folder_goes_on_from_its_masks(dense: Path, tmp_path: Path) -> None:
    run(2, dense, tmp_path / "half", final_sparsity=0.5)
    further = run(2, tmp_path / "half", tmp_path / "further", final_sparsity=0.8)
    direct = run(1, dense, tmp_path / "direct", final_sparsity=0.8)
    assert isinstance(further, PruneReport) and isinstance(direct, PruneReport)
    assert further.digest == direct.digest
    less = run(2, tmp_path / "further", tmp_path / "less", final_sparsity=0.3)
    assert "is sparser than that already" in str(less) and not (tmp_path / "less").exists()


def test_patterns_and_names_of_ones_own(dense: Path, tmp_path: Path) -> None:
    report = run(3, dense, tmp_path / "nm", final_sparsity=0.5, pattern="2:4")
    assert isinstance(report, PruneReport)
    masks, _ = load_keep_masks(tmp_path / "nm" / KEEP_MASK_FILE)
    assert all((m.view(-1, 4).sum(1) == 2).all() for m in masks.values())
    chosen = run(2, dense, tmp_path / "own", ("*word_embeddings*",), final_sparsity=0.25)
    assert isinstance(chosen, PruneReport)
    assert chosen.by_name == {"embeddings.word_embeddings.weight": 150}
    masks, _ = load_keep_masks(tmp_path / "own" / KEEP_MASK_FILE)
    assert len(masks) == 13, "one for each matrix of the encoder too"
    assert all(mask.all() for name, mask in masks.items() if is_prunable(name))


def test_bad_input(dense: Path, tmp_path: Path) -> None:
    options = {"final_sparsity": 0.5}
    assert "exists already" in str(run(2, dense, dense, **options))
    assert "has no model.safetensors" in str(run(2, tmp_path, tmp_path / "o", **options))
    assert "is not a folder" in str(run(2, tmp_path / "none", tmp_path / "o", **options))
    assert "--match names" in str(run(2, dense, tmp_path / "o", ("nothing*",), **options))
    other = tmp_path / "other"
    other.mkdir()
    save_file({"conv.weight": torch.randn(4, 4)}, other / "model.safetensors")
    assert "no BERT encoder layer" in str(run(2, other, tmp_path / "o", **options))
    (other / "model.safetensors").write_bytes(b"\\xff" * 100)
    assert "is missing or damaged" in str(run(2, other, tmp_path / "o", **options))
    (other / "model.safetensors").unlink()  # else it is what is read
    (other / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../secret.safetensors"}})
    )
    assert "outside its folder" in str(run(2, other, tmp_path / "o", **options))
    (other / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in str(run(2, other, tmp_path / "o", **options))
    uneven = str(run(2, dense, tmp_path / "o", pattern="8x8", **options))
    assert "sparsity.pattern needs weights" in uneven
    assert not (tmp_path / "o").exists()


def test_the_same_weights_in_another_form_are_left_out(
    dense: Path, sharded: Path, tmp_path: Path
) -> None:
    """transformers may read those, and would find a dense model."""
    source = tmp_path / "both"
    shutil.copytree(dense, source)
    for file in sharded.glob("model*"):
        shutil.copyfile(file, source / file.name)
    others = {"pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "flax_model.msgpack"}
    for name in others:
        (source / name).write_bytes(b"dense")
    output = tmp_path / "out"
    report = run(1, source, output, final_sparsity=0.9)
    assert isinstance(report, PruneReport)
    assert report.digest == expected_digest(oracle(dense, 0.9))
    names = {file.name for file in output.iterdir()}
    assert {"config.json", "notes.txt", "model.safetensors", KEEP_MASK_FILE} <= names
    assert not names & others and not any("-of-" in name or "index" in name for name in names)
    assert len({file.stat().st_mode for file in output.iterdir()}) == 1
    loaded = BertForMaskedLM.from_pretrained(output)
    weights = {canonical_name(n): p for n, p in loaded.named_parameters()}
    zeros = sum(int((p == 0).sum()) for n, p in weights.items() if is_prunable(n))
    assert zeros == report.pruned


# Weights that are stored twice, or in parts.

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"


def changed(dense: Path, folder: Path, change: Callable[[Tensors], Tensors | None]) -> Path:
    shutil.copytree(dense, folder)
    change_weights(folder, change)
    return folder


def test_a_tied_embedding_that_is_stored_twice_is_pruned_twice(dense: Path, tmp_path: Path) -> None:
    twice = changed(dense, tmp_path / "twice", lambda t: {**t, DECODER: t[EMBEDDINGS].clone()})
    options = {"final_sparsity": 0.5}
    for number, match in enumerate((("*word_embeddings*",), ("*decoder.weight",), ("*.weight",))):
        output, once = tmp_path / f"out{number}", tmp_path / f"once{number}"
        report = run(2, twice, output, match, **options)
        assert isinstance(report, PruneReport)
        tensors = read_all(output)
        assert torch.equal(tensors[DECODER], tensors[EMBEDDINGS])
        pruned = int((tensors[EMBEDDINGS] == 0).sum())
        assert pruned == report.by_name["embeddings.word_embeddings.weight"] > 0
        whole = sum(t.numel() for t in read_all(dense).values())
        assert report.total == whole, "a weight that is stored twice is one"
        model = BertForMaskedLM.from_pretrained(output)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert torch.equal(model.get_input_embeddings().weight, tensors[EMBEDDINGS])
        if match != ("*decoder.weight",):
            direct = run(1, dense, once, match, **options)
            assert isinstance(direct, PruneReport) and direct.digest == report.digest


def test_tied_copies_that_differ(dense: Path, tmp_path: Path) -> None:
    differ = changed(dense, tmp_path / "differ", lambda t: {**t, DECODER: t[EMBEDDINGS] + 1})
    said = run(2, differ, tmp_path / "o", ("*word_embeddings*",), final_sparsity=0.5)
    assert "decoder of its own (cls.predictions.decoder.weight)" in str(said)
    assert not (tmp_path / "o").exists()
    change_config(differ, tie_word_embeddings=False)  # then they are two parameters
    report = run(1, differ, tmp_path / "own", ("*word_embeddings*",), final_sparsity=0.5)
    assert isinstance(report, PruneReport)
    assert (read_all(tmp_path / "own")[DECODER] != 0).all()


def test_tied_weights_of_another_model(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=12)
    torch.manual_seed(2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    wte = "transformer.wte.weight"
    change_weights(tmp_path / "gpt2", lambda t: {**t, "lm_head.weight": t[wte].clone()})
    report = run(2, tmp_path / "gpt2", tmp_path / "out", ("*wte*",), final_sparsity=0.5)
    assert isinstance(report, PruneReport) and report.by_name == {wte: 160}
    tensors = read_all(tmp_path / "out")
    assert torch.equal(tensors["lm_head.weight"], tensors[wte])
    assert int((tensors[wte] == 0).sum()) == 160
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, tensors[wte])


QUERY = "bert.encoder.layer.1.attention.self.query"
KEY = "bert.encoder.layer.0.attention.self.key"


def torch_pruned(tensors: Tensors) -> None:
    """As torch.nn.utils.prune leaves it where it was not made permanent."""
    for name in (QUERY, KEY):
        weight = tensors.pop(f"{name}.weight")
        tensors |= {f"{name}.weight_orig": weight, f"{name}.weight_mask": torch.ones_like(weight)}


def normed(tensors: Tensors) -> None:
    weight = tensors.pop(f"{QUERY}.weight")
    tensors |= {f"{QUERY}.weight_g": weight[:, :1].clone(), f"{QUERY}.weight_v": weight}


def adapted(tensors: Tensors) -> Tensors:
    """As PEFT saves a whole model."""
    new = {f"base_model.model.{name}": weight for name, weight in tensors.items()}
    name = f"base_model.model.{QUERY}"
    weight = new.pop(f"{name}.weight")
    return {
        **new,
        f"{name}.base_layer.weight": weight,
        f"{name}.lora_A.default.weight": weight[:2].clone(),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch_pruned, "key.weight_mask and bert.encoder.layer.0.attention.self.key.weight_orig "
         "stand in its place, so make its pruning permanent"),
        (normed, "query.weight_g and bert.encoder.layer.1.attention.self.query.weight_v stand"),
        (adapted, "in its place, so merge the adapter"),
        (lambda t: {n: w for n, w in t.items() if n != f"{QUERY}.weight"}, "query.weight: give a"),
        (lambda t: {n: w for n, w in t.items() if ".layer.1." not in n}, "has no encoder.layer.1."),
        (lambda t: {**t, f"{QUERY}.weight": t[f"{QUERY}.weight"][:6].clone()},
         "query.weight of shape [6, 12], and the model's dimensions ask for [12, 12]"),
        (lambda t: {**t, f"{QUERY}.weight": (t[f"{QUERY}.weight"] * 99).to(torch.int8)},
         "query.weight as I8, which is no floating-point weight"),
        (lambda t: {**t, f"{QUERY}.weight_scale": torch.ones(1)},
         "query.weight_scale (F32 [1]), which is no parameter of BERT's encoder"),
    ],
)  # fmt: skip
def test_a_part_of_an_encoder_is_not_pruned(
    dense: Path, tmp_path: Path, change: Callable[[Tensors], Tensors | None], said: str
) -> None:
    source = changed(dense, tmp_path / "source", change)
    assert said in str(run(2, source, tmp_path / "o", final_sparsity=0.9))
    assert not (tmp_path / "o").exists()


def test_parts_that_are_named_are_no_weights(dense: Path, tmp_path: Path) -> None:
    source = changed(dense, tmp_path / "source", torch_pruned)
    said = str(run(1, source, tmp_path / "o", ("*query*",), final_sparsity=0.9))
    assert "which is a part of a weight and not one: make its pruning permanent" in said
    change_config(source, quantization_config={"quant_method": "gptq"})
    said = str(run(1, source, tmp_path / "o", ("*value*",), final_sparsity=0.9))
    assert "has quantization_config" in said and not (tmp_path / "o").exists()


def test_what_belongs_to_a_sentence_model_comes_along(dense: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(dense, tmp_path / "source"))
    (source / "modules.json").write_text(
        json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "../elsewhere"}])
    )
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"dense")
    report = run(1, source, tmp_path / "out", final_sparsity=0.5)
    assert isinstance(report, PruneReport)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"
    assert not (tmp_path / "out" / "onnx").exists()
    again = run(1, tmp_path / "out", tmp_path / "again", final_sparsity=0.8)
    assert isinstance(again, PruneReport)
    cards = {file.name for file in (tmp_path / "again").glob("README*")}
    assert cards == {"README.md", "README.source.md", "README.source.source.md"}
