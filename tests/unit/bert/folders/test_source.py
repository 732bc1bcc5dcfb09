"""What a Hugging Face folder is taken for. What is read is compared with transformers' models."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertForMaskedLM

from bert.architecture import is_prunable
from bert.config import ModelConfig
from bert.folders.keep_mask import save_keep_masks
from bert.folders.source import check_dimensions, open_source
from bert.tasks.model import build_task_model
from bert.transfer import transfer_start
from bert.vocabulary import load_vocabulary
from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig
from tests.unit.bert.folders.writing import (
    WORDS,
    Tensors,
    change_config,
    change_weights,
    write_folder,
    write_shards,
)

QUERY = "bert.encoder.layer.1.attention.self.query"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "bert")


def check_weights(folder: Path) -> None:
    """The encoder is what AutoModel reads, to the bit."""
    read = open_source(folder).read().weights
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not [n for n in info["missing_keys"] if not n.startswith("pooler.")]
    theirs = model.float().state_dict()
    for name, weight in theirs.items():
        if name in read or not name.startswith("pooler."):
            assert torch.equal(read[name], weight.flatten()), name


def test_dimensions_and_vocabulary_come_with_it(folder: Path) -> None:
    found = open_source(folder)
    assert found.config == ModelConfig(
        hidden_size=16, num_layers=2, num_heads=4, intermediate_size=24,
        max_position_embeddings=20, vocab=folder / "vocab.txt",
    )  # fmt: skip
    assert found.vocabulary == load_vocabulary(folder / "vocab.txt")
    assert not found.is_pruned and found.labels is None
    check_weights(folder)


def test_encoder_and_pooler_are_taken_and_heads_are_not(folder: Path) -> None:
    found = open_source(folder)
    module = build_task_model(
        found.config, kind="classification", num_outputs=3, vocab_size=len(WORDS), pad_id=0,
        hidden_dropout=0.0, attention_dropout=0.0, seed=1,
    )  # fmt: skip
    start = transfer_start(folder, found.read(), module, sparsity=None, encoder_only=True)
    theirs = load_file(folder / "model.safetensors")
    for name in ("pooler.dense.weight", "encoder.layer.1.output.dense.weight"):
        want = theirs[f"bert.{name}"].flatten()
        assert torch.equal(start.weights(name, 0, want.numel()), want)
    own = module.head.weight.detach().flatten()
    assert torch.equal(start.weights("classifier.weight", 0, own.numel()), own)


@pytest.mark.parametrize(("share", "pruned"), [(0.002, False), (0.5, True)])
def test_a_few_zeros_are_chance(folder: Path, share: float, pruned: bool) -> None:
    draw = torch.Generator().manual_seed(1)

    def prune(tensors: Tensors) -> None:
        for name, weight in tensors.items():
            if is_prunable(name.removeprefix("bert.")):
                weight[torch.rand(weight.shape, generator=draw) < share] = 0.0

    change_weights(folder, prune)
    assert open_source(folder).is_pruned == pruned


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {"1": "pos", "0": "neg", "10": "c", "2": "b"}}, ["neg", "pos", "b", "c"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({}, None),
    ],
)
def test_labels(folder: Path, config: dict[str, Any], labels: list[str] | None) -> None:
    change_config(folder, **config)
    assert open_source(folder).labels == labels


# Forms in which a BERT is stored.


def test_the_first_berts(folder: Path) -> None:
    """Names of TensorFlow, a copy of the decoder, position ids, bf16, no model_type."""

    def age(tensors: Tensors) -> Tensors:
        old = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): t
            for n, t in tensors.items()
        }
        old["cls.predictions.decoder.weight"] = old[
            "bert.embeddings.word_embeddings.weight"
        ].clone()
        old["bert.embeddings.position_ids"] = torch.arange(20)[None]
        return old

    new = open_source(folder).read().weights
    change_weights(folder, age)
    change_config(folder, model_type=None, architectures=None)
    old = open_source(folder).read().weights
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in new)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(folder: Path, dtype: torch.dtype) -> None:
    change_weights(folder, lambda t: {n: w.to(dtype) for n, w in t.items()})
    check_weights(folder)


def test_without_the_prefix_and_without_a_pooler(folder: Path) -> None:
    def strip(tensors: Tensors) -> Tensors:
        encoder = {n[5:]: w for n, w in tensors.items() if n.startswith("bert.")}
        return {n: w for n, w in encoder.items() if not n.startswith("pooler.")}

    change_weights(folder, strip)
    change_config(folder, architectures=["BertModel"])
    check_weights(folder)


def test_several_files(folder: Path) -> None:
    whole = open_source(folder).read().weights
    places = write_shards(folder, 3)
    check_weights(folder)
    read = open_source(folder).read().weights
    assert all(torch.equal(read[name], whole[name]) for name in whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**places, "bert.x": "model-0.safetensors"}}))
    with pytest.raises(BadInput, match=r"index.json says that bert.x is in model-0.safetensors"):
        open_source(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(BadInput, match=r"names model-1.safetensors, which is missing"):
        open_source(folder)


def test_one_file_and_the_index_of_others(folder: Path, tmp_path: Path) -> None:
    """transformers reads the one file."""
    write_shards(Path(shutil.copytree(folder, tmp_path / "shards")))
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copy(file, folder)
    change_weights(folder, lambda t: {n: w * 2 for n, w in t.items()})
    check_weights(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ("[1]", "is not a JSON object"),
        ("{", "is not JSON"),
        ('{"weight_map": {"x": "../secret.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"x": 3}}', "outside its folder"),
    ],
)
def test_an_index_that_is_none(folder: Path, content: str, said: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        open_source(folder)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", r"pickle \(\.bin\), which is never opened: convert it"),
        ("tf_model.h5", "TensorFlow's form"),
        ("flax_model.msgpack", "Flax's form"),
        ("model.onnx", "ONNX"),
        ("model-q4.gguf", "GGUF"),
        ("model.fp16.safetensors", "has no model.safetensors, but model.fp16.safetensors"),
        ("adapter_model.safetensors", "but adapter_model.safetensors"),
    ],
)
def test_weights_in_another_form(folder: Path, file: str, said: str) -> None:
    (folder / "model.safetensors").rename(folder / file)
    (folder / "training_args.bin" if file != "pytorch_model.bin" else folder / "x.txt").touch()
    if file not in ("pytorch_model.bin", "model.fp16.safetensors", "adapter_model.safetensors"):
        (folder / "training_args.bin").unlink()
    with pytest.raises(BadInput, match=said):
        open_source(folder)


def test_a_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 437951328\n"
    )
    with pytest.raises(BadInput, match="is a Git LFS pointer and not the weights"):
        open_source(folder)


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist: give a run, a checkpoint or"):
        open_source(tmp_path / "nowhere")
    cases = {
        "adapter": ("adapter_config.json", "is a PEFT adapter and not a model"),
        "sentences": ("0_Transformer/config.json", "give .*0_Transformer, its transformer"),
        "cache": ("snapshots/1a2b/config.json", "Hugging Face cache: give .*1a2b"),
        "google": ("bert_model.ckpt.index", "TensorFlow checkpoint of BERT"),
        "trainer": (
            "checkpoint-500/config.json",
            "checkpoints: give one, such as .*checkpoint-500",
        ),
    }
    for name, (file, said) in cases.items():
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_text("{}")
        with pytest.raises(BadInput, match=said):
            open_source(tmp_path / name)
    with pytest.raises(BadInput, match="is a file: give the folder that it lies in"):
        open_source(folder / "model.safetensors")
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        open_source(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "keep_mask.safetensors"])
def test_a_damaged_file_is_refused(folder: Path, file: str) -> None:
    keep = {n: w != 7 for n, w in load_file(folder / "model.safetensors").items()}
    masks = {n.removeprefix("bert."): k for n, k in keep.items() if is_prunable(n[5:])}
    save_keep_masks(masks, digest=None, path=folder / "keep_mask.safetensors")
    assert open_source(folder).read().masks is not None
    path = folder / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match=f"{file} is missing or damaged"):
        open_source(folder).read()


# What it is.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "roberta"}, r"not BERT \(model_type roberta\)"),
        ({"model_type": "distilbert"}, r"not BERT \(model_type distilbert\)"),
        ({"model_type": "electra"}, r"not BERT \(model_type electra\)"),
        ({"model_type": None, "architectures": ["RobertaModel"]}, "architectures RobertaModel"),
        (
            {"model_type": None, "architectures": None, "type_vocab_size": None},
            "no type_vocab_size",
        ),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"hidden_size": "wide"}, r"config.json is no BERT's: hidden_size Input should be"),
        ({"num_attention_heads": 3}, "is not a multiple of"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "has quantization_config"),
        ({"intermediate_size": 32}, r"intermediate.dense.weight of shape \[24, 16\].*\[32, 16\]"),
        ({"num_hidden_layers": 3}, r"has no encoder.layer.2.attention.self.query.weight"),
        ({"num_hidden_layers": 1}, r"has bert.encoder.layer.1.\S+ .* no parameter of BERT's"),
        ({"vocab_size": 14}, r"word_embeddings.weight of shape \[15, 16\]"),
    ],
)
def test_what_is_not_a_bert_that_we_compute_alike(
    folder: Path, change: dict[str, Any], said: str
) -> None:
    change_config(folder, **change)
    with pytest.raises(BadInput, match=said):
        open_source(folder)


@pytest.mark.parametrize("classes", [None, ["BertForMaskedLM"], ["BertForSequenceClassification"]])
def test_without_a_model_type_it_is_bert_by_its_classes_or_fields(
    folder: Path, classes: list[str] | None
) -> None:
    want = open_source(folder)
    change_config(folder, model_type=None, architectures=classes)
    found = open_source(folder)
    assert found.config == want.config and found.fingerprint == want.fingerprint
    assert found.vocabulary == want.vocabulary


# Weights that are not what they seem.


def parametrize(kind: str) -> Callable[[Tensors], Tensors]:
    """What torch or PEFT saves of one linear layer."""

    def change(tensors: Tensors) -> Tensors:
        weight = tensors.pop(f"{QUERY}.weight")
        parts = {
            "prune": {"weight_orig": weight, "weight_mask": torch.ones_like(weight)},
            "weight_norm": {"weight_g": weight[:, :1].clone(), "weight_v": weight},
            "parametrizations": {
                "parametrizations.weight.original0": weight[:, :1].clone(),
                "parametrizations.weight.original1": weight,
            },
            "lora": {
                "base_layer.weight": weight,
                "lora_A.default.weight": weight[:2].clone(),
                "lora_B.default.weight": weight[:, :2].clone(),
            },
            "gptq": {"qweight": weight.to(torch.int32), "scales": weight[:1].clone()},
            "nothing": {},
        }[kind]
        return {**tensors, **{f"{QUERY}.{name}": part for name, part in parts.items()}}

    return change


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("prune", r"query.weight_mask and \S+query.weight_orig stand in its place, so make its"),
        ("weight_norm", r"weight_g and \S+weight_v stand in its place, so fold it with"),
        ("parametrizations", r"original0 and \S+original1 stand .*remove_parametrizations"),
        (
            "lora",
            r"base_layer.weight and .* 1 more stand in its place, so merge .*merge_and_unload",
        ),
        ("nothing", "give a whole BERT"),
        ("gptq", r"qweight and \S+scales stand in its place, so give the model that it was quant"),
    ],
)
def test_a_weight_in_parts(folder: Path, kind: str, said: str) -> None:
    change_weights(folder, parametrize(kind))
    missing = "has no encoder.layer.1.attention.self.query.weight: "
    with pytest.raises(BadInput, match=missing + r".*" + said):
        open_source(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_codes_are_no_weights(folder: Path, dtype: torch.dtype) -> None:
    def quantise(tensors: Tensors) -> None:
        weight = tensors[f"{QUERY}.weight"]
        scale = weight.abs().amax() / 100
        tensors[f"{QUERY}.weight"] = (weight / scale).to(dtype)
        tensors[f"{QUERY}.weight_scale"] = scale[None].clone()

    change_weights(folder, quantise)
    with pytest.raises(BadInput, match=r"query.weight as \w+, which is no floating-point weight"):
        open_source(folder)


@pytest.mark.parametrize(
    "name",
    [f"{QUERY}.weight_scale", "bert.encoder.layer.0.attention.self.query.lora_A.weight",
     "bert.embeddings.word_embeddings.weight_scale", "bert.pooler.adapter.weight",
     "encoder.layer.0.adapter.down.weight"],
)  # fmt: skip
def test_what_no_parameter_takes_is_named(folder: Path, name: str) -> None:
    change_weights(folder, lambda t: {**t, name: torch.ones(2)})
    with pytest.raises(BadInput, match=rf"has {name} \(F32 \[2\]\), which is no parameter of BERT"):
        open_source(folder)


def test_one_matrix_for_query_key_and_value(folder: Path) -> None:
    def fuse(tensors: Tensors) -> Tensors:
        parts = [tensors.pop(f"{QUERY[:-5]}{part}.weight") for part in ("query", "key", "value")]
        return {**tensors, f"{QUERY[:-5]}Wqkv.weight": torch.cat(parts)}

    change_weights(folder, fuse)
    with pytest.raises(BadInput, match=r"self.query.weight: \S+self.Wqkv.weight stands in its pla"):
        open_source(folder)


def test_a_missing_bias_is_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda t: {n: w for n, w in t.items() if n != f"{QUERY}.bias"})
    with pytest.raises(BadInput, match="has no encoder.layer.1.attention.self.query.bias"):
        open_source(folder)


def test_a_transposed_weight_is_refused(folder: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    change_weights(folder, lambda t: {**t, name: t[name].t().contiguous()})
    with pytest.raises(BadInput, match=r"output.dense.weight of shape \[24, 16\].* \[16, 24\]"):
        open_source(folder)


def test_copies_that_differ(folder: Path) -> None:
    copy = "cls.predictions.decoder.weight"
    embeddings = "bert.embeddings.word_embeddings.weight"
    change_weights(folder, lambda t: {**t, copy: t[embeddings] + 1})
    with pytest.raises(BadInput, match="decoder of its own"):
        open_source(folder).read()
    change_weights(
        folder, lambda t: {**t, copy: t[embeddings].clone(), embeddings[5:]: t[embeddings] + 1}
    )
    with pytest.raises(BadInput, match=r"are the same parameter of BERT and differ"):
        open_source(folder).read()
    change_weights(folder, lambda t: {**t, embeddings[5:]: t[embeddings].clone()})
    check_weights(folder)


# Its vocabulary and the rows of its embeddings.


def test_a_folder_without_its_vocabulary(folder: Path, tmp_path: Path) -> None:
    elsewhere = (folder / "vocab.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(BadInput, match=r"the vocabulary .*vocab.txt of .* set model.vocab"):
        open_source(folder)
    with pytest.raises(BadInput, match=r"the vocabulary .*none.txt of .* set model.vocab"):
        open_source(folder, vocab=tmp_path / "none.txt")
    found = open_source(folder, vocab=elsewhere)
    assert found.vocabulary is not None and found.vocabulary.size == len(WORDS)
    assert found.config.vocab_rows is None
    elsewhere.write_text("\n".join([*WORDS, "more"]) + "\n")
    with pytest.raises(BadInput, match=r"has 15 rows of word embeddings, and .* has 16 words"):
        open_source(folder, vocab=elsewhere)
    shutil.copy(elsewhere, folder / "vocab.txt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    with pytest.raises(BadInput, match=r"elsewhere.txt is not the vocabulary of"):
        open_source(folder, vocab=elsewhere)


def test_padded_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "padded", rows=24)
    with caplog.at_level(logging.WARNING):
        found = open_source(folder)
    assert found.config.vocab_rows == 24 and found.vocabulary is not None
    assert found.vocabulary.size == len(WORDS)
    assert "has 24 rows of word embeddings for 15 words" in caplog.text
    check_weights(folder)
    vocabulary = found.vocabulary
    with pytest.raises(BadInput, match="has 24 rows .* for the 15 words .* model.vocab_rows=24"):
        config = found.config.model_copy(update={"vocab_rows": None})
        check_dimensions(found, config, words=vocabulary.size)
    check_dimensions(found, found.config, words=vocabulary.size)


def test_of_which_pretraining_knows_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    plain = load_vocabulary(folder / "vocab.txt")
    settings = json.dumps({"do_lower_case": True, "strip_accents": False})
    assert open_source(folder, vocabulary=plain).vocabulary == plain
    (folder / "tokenizer_config.json").write_text(settings)
    with pytest.raises(BadInput, match="reads text with strip_accents false, and .* with null"):
        open_source(folder, vocabulary=plain)
    own = load_vocabulary(folder)
    assert own.settings.strip_accents is False
    assert open_source(folder, vocabulary=own).vocabulary is not None
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*WORDS[:-1], "zebra"]) + "\n")
    with pytest.raises(BadInput, match=r"other.txt is not the vocabulary of model.init_from"):
        open_source(folder, vocabulary=load_vocabulary(other))
    (folder / "vocab.txt").unlink()
    assert open_source(folder, vocabulary=plain).vocabulary is None, "it does not tell"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 32),
        ("num_layers", 3),
        ("num_heads", 2),
        ("intermediate_size", 64),
        ("max_position_embeddings", 8),
    ],
)
def test_other_dimensions_are_refused(folder: Path, field: str, value: int) -> None:
    found = open_source(folder)
    config = found.config.model_copy(update={field: value})
    with pytest.raises(BadInput, match=rf"model\.{field} is {value}, but model\.init_from .* has"):
        check_dimensions(found, config, words=len(WORDS))


# Masks.


def masks_of(folder: Path, *, share: float = 0.5) -> Tensors:
    """Prune the folder's matrices by chance; the masks."""
    draw = torch.Generator().manual_seed(2)
    masks: Tensors = {}

    def prune(tensors: Tensors) -> None:
        for name, weight in tensors.items():
            if is_prunable(name.removeprefix("bert.")):
                keep = torch.rand(weight.shape, generator=draw) >= share
                weight.mul_(keep)
                masks[name.removeprefix("bert.")] = keep

    change_weights(folder, prune)
    return masks


def test_a_mask_file_of_another_model_is_refused(folder: Path) -> None:
    file = folder / "keep_mask.safetensors"
    masks = masks_of(folder)
    save_keep_masks(masks, digest=None, path=file)
    found = open_source(folder)
    read = found.read()
    assert found.is_pruned and read.masks is not None
    assert all(torch.equal(read.masks[name], keep.flatten()) for name, keep in masks.items())
    save_keep_masks({n: ~keep for n, keep in masks.items()}, digest=None, path=file)
    with pytest.raises(BadInput, match="not 0 everywhere"):
        found.read()
    name = next(iter(masks))
    save_keep_masks({n: keep for n, keep in masks.items() if n != name}, digest=None, path=file)
    with pytest.raises(BadInput, match=f"{name} is missing"):
        found.read()
    save_keep_masks({**masks, "encoder.x": masks[name]}, digest=None, path=file)
    with pytest.raises(BadInput, match=r"encoder.x is too many"):
        found.read()
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(BadInput, match="format version 1"):
        found.read()


def test_a_mask_of_an_embedding_stays_where_masks_are_frozen(folder: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    masks = masks_of(folder)
    keep = torch.ones(len(WORDS), 16, dtype=torch.bool)
    keep[6:9] = False
    change_weights(folder, lambda t: {**t, f"bert.{name}": t[f"bert.{name}"] * keep})
    save_keep_masks({**masks, name: keep}, digest=None, path=folder / "keep_mask.safetensors")
    found = open_source(folder)
    module = build_task_model(
        found.config, kind="tokens", num_outputs=3, vocab_size=len(WORDS), pad_id=0,
        hidden_dropout=0.0, attention_dropout=0.0, seed=1,
    )  # fmt: skip
    frozen = SparsityConfig.model_validate({"schedule": "frozen"})
    start = transfer_start(folder, found.read(), module, sparsity=frozen, encoder_only=True)
    assert start.masked == {*masks, name} and start.masks is not None
    assert torch.equal(start.masks(name, 0, keep.numel()), keep.flatten())
    growing = SparsityConfig.model_validate({"final_sparsity": 0.9, "prune_end_step": 5})
    with pytest.raises(BadInput, match=rf"prunes {name}, which no run does"):
        transfer_start(folder, found.read(), module, sparsity=growing, encoder_only=True)


def test_a_plain_masked_lm_answers_as_before(folder: Path) -> None:
    """The whole way: what was read gives the logits that transformers gives."""
    read = open_source(folder).read().weights
    ids = torch.tensor([[2, 5, 13, 4, 8, 3]])
    want = BertForMaskedLM.from_pretrained(folder).eval()(ids).logits
    config = BertConfig.from_pretrained(folder)
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(read[name.removeprefix("bert.")].view(weight.shape))
    assert torch.equal(model(ids).logits, want)
