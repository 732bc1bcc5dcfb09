"""`sparsebert inspect` of Hugging Face folders: exports of ours, and other people's models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM
from typer.testing import CliRunner

from bert.architecture import canonical_name, is_prunable
from bert.folders.keep_mask import load_keep_masks
from distributed.errors import BadInput
from launch.__main__ import app
from launch.models.export import export_checkpoint
from launch.models.inspect import describe
from tests.unit.bert.folders.writing import (
    WORDS,
    Tensors,
    change_config,
    change_weights,
    write_folder,
    write_shards,
)
from tests.unit.sparsity.oracle import expected_digest
from training.folder import RunFolder

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "bert")


def inspect(folder: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["inspect", str(folder), *options])
    return done.exit_code, done.stdout


def report_of(folder: Path) -> tuple[int, dict[str, Any]]:
    code, text = inspect(folder, "--json")
    report: dict[str, Any] = json.loads(text)
    return code, report


def test_an_export_says_what_its_checkpoint_does(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10)
    export_checkpoint(run.path, tmp_path / "out")
    code, report = report_of(tmp_path / "out")
    of_run = describe(run.path)["sparsity"]
    assert code == 0 and report["problems"] == report["notes"] == report["unknown"] == []
    assert report["kind"] == "folder" and report["sparsity"]["from"] == "keep_mask.safetensors"
    for name in ("prunable", "pruned", "over_prunable", "over_all", "digest", "by_parameter"):
        assert report["sparsity"][name] == of_run[name], name
    assert report["tied"] == [] and report["words"] == 31
    assert report["heads"][0] == "cls.predictions.bias"
    code, text = inspect(tmp_path / "out")
    assert code == 0 and "75.0000% of 3,584 prunable weights" in text
    assert of_run["digest"] in text and "Sparsity by layer" in text


def test_zeros_without_a_mask_file(folder: Path) -> None:
    _, dense = report_of(folder)
    assert dense["sparsity"]["digest"] is None and dense["sparsity"]["pruned"] == 0
    keep = {}

    def prune(tensors: Tensors) -> None:
        for name, weight in tensors.items():
            if is_prunable(canonical_name(name)):
                weight[weight.abs() < 0.02] = 0.0
                keep[canonical_name(name)] = (weight != 0).flatten().numpy()

    change_weights(folder, prune)
    code, report = report_of(folder)
    sparsity = report["sparsity"]
    assert code == 0 and sparsity["from"] == "zeros"
    assert sparsity["digest"] == expected_digest(keep)
    assert sparsity["pruned"] == sum(int((~k).sum()) for k in keep.values()) > 0
    for name, kept in keep.items():
        assert sparsity["by_parameter"][name]["sparsity"] == (~kept).sum() / kept.size
    weights = load_file(folder / "model.safetensors")
    assert report["parameters"] == sum(w.numel() for w in weights.values())
    assert report["stored"] == {"F32": report["parameters"]}
    assert report["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_what_no_run_would_start_from_is_shown_and_said(folder: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.query.weight"

    def quantise(tensors: Tensors) -> None:
        tensors[name] = (tensors[name] * 1000).to(torch.int8)
        tensors[f"{name}_scale"] = torch.ones(1)

    change_weights(folder, quantise)
    change_config(folder, quantization_config={"quant_method": "compressed-tensors"})
    code, report = report_of(folder)
    assert code == 1 and report["unknown"] == [f"{name}_scale"]
    assert report["stored"]["I8"] == 256 and report["stored"]["F32"] > 0
    assert len(report["sparsity"]["by_parameter"]) == 11, "codes are not counted"
    said = " ".join(report["problems"])
    assert "has quantization_config" in said and "as I8, which is no floating-point" in said
    code, text = inspect(folder)
    assert code == 1 and "problem: " in text


def test_weights_that_are_stored_twice(folder: Path) -> None:
    copy, original = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    change_weights(folder, lambda t: {**t, copy: t[original].clone()})
    code, report = report_of(folder)
    assert code == 0
    assert report["tied"] == [
        {
            "parameter": "embeddings.word_embeddings.weight",
            "stored": [original, copy],
            "equal": True,
        }
    ]
    assert "tied embeddings.word_embeddings.weight" in inspect(folder)[1]
    change_weights(folder, lambda t: {**t, copy: t[original] + 1})
    code, report = report_of(folder)
    assert code == 1 and not report["tied"][0]["equal"]
    assert "a decoder of its own" in report["problems"][0]


def test_several_files_and_a_tokenizer(folder: Path) -> None:
    whole = report_of(folder)[1]
    write_shards(folder, 3)
    (folder / "tokenizer_config.json").write_text('{"strip_accents": false}')
    code, report = report_of(folder)
    assert code == 0 and report["files"] == [f"model-{i}.safetensors" for i in range(3)]
    assert report["tokenizer"] == {"lower_case": True, "settings": {"strip_accents": False}}
    assert report["words"] == len(WORDS)
    for name in ("parameters", "stored", "sparsity", "dimensions"):
        assert report[name] == whole[name]
    assert "strip_accents false" in inspect(folder)[1]


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_any_model(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=12)
        )
        name = "transformer.h.0.mlp.c_fc.weight"
    else:
        model = RobertaForMaskedLM(
            RobertaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                          intermediate_size=12, max_position_embeddings=12)
        )  # fmt: skip
        name = "roberta.encoder.layer.0.output.dense.weight"
    weight = model.get_parameter(name)
    with torch.no_grad():
        weight[:2] = 0
    model.save_pretrained(tmp_path / kind)
    code, report = report_of(tmp_path / kind)
    assert code == 0 and report["model_type"] == kind and report["problems"] == []
    assert f"not BERT (model_type {kind})" in report["notes"][0]
    count = report["sparsity"]["by_parameter"][name]
    assert (count["numel"], count["pruned"]) == (weight.numel(), weight[:2].numel())
    assert report["sparsity"]["digest"] is None
    assert report["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_mask_that_is_not_enforced(make_run: MakeRun, tmp_path: Path) -> None:
    export_checkpoint(make_run(10).path, tmp_path / "out")
    masks, _ = load_keep_masks(tmp_path / "out" / "keep_mask.safetensors")
    name = next(iter(masks))
    change_weights(tmp_path / "out", lambda t: {**t, f"bert.{name}": t[f"bert.{name}"] + 1})
    code, report = report_of(tmp_path / "out")
    assert code == 1
    assert (
        f"{int((~masks[name]).sum())} pruned weights of {name} are not zero" in report["problems"]
    )


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").unlink()
    code, report = report_of(folder)
    assert code == 0 and "a run needs model.vocab" in report["notes"][0]
    (folder / "config.json").unlink()
    code, report = report_of(folder)
    assert code == 0 and "no config.json" in " ".join(report["notes"])
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(BadInput, match="give a run, a checkpoint or a Hugging Face folder"):
        describe(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="is a PEFT adapter"):
        describe(folder)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").touch()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(BadInput, match="pickle"):
        describe(folder)
