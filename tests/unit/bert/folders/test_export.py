import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import bert.folders.export
from bert.architecture import is_prunable, named_weights
from bert.config import ModelConfig
from bert.folders.export import export_model, fill_mask
from bert.folders.source import check_dimensions, open_source
from bert.model import PretrainingModel
from bert.vocabulary import load_vocabulary
from distributed.errors import BadInput

DIGEST = "0123456789abcdef"
REPORT = {"name": "demo", "step": 40, "tokens": 1234, "validation": {"general": 3.25}}
QUERY = "encoder.layer.0.attention.self.query.weight"

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def sparse(build_tiny: Callable[..., PretrainingModel]) -> tuple[Tensors, Tensors]:
    """The state of a tiny model with random masks applied, and the masks."""
    state = {name: weight.detach().clone() for name, weight in named_weights(build_tiny())}
    generator = torch.Generator().manual_seed(0)
    keep_masks = {}
    for name, weight in state.items():
        if is_prunable(name):
            keep_masks[name] = torch.rand(weight.shape, generator=generator) < 0.25
            weight.mul_(keep_masks[name])
    state[QUERY].view(-1)[keep_masks[QUERY].view(-1).nonzero()[0]] = 0  # alive, and 0 by chance
    return state, keep_masks


@pytest.fixture
def export(
    sparse: tuple[Tensors, Tensors], tiny_config: ModelConfig, tmp_path: Path
) -> Callable[..., bool]:
    def run(**changes: object) -> bool:
        state, keep_masks = sparse
        arguments = {
            "model_config": tiny_config,
            "vocabulary": load_vocabulary(tiny_config.vocab),
            "keep_masks": keep_masks,
            "digest": DIGEST,
            "report": REPORT,
            "output": tmp_path / "out",
        }
        return export_model(changes.pop("state", state), **{**arguments, **changes})

    return run


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# Round trips

RELOAD = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder, output = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("a b [MASK] d", return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model.eval()(ids).logits
problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
json.dump({"class": type(model).__name__, "attention": model.config._attn_implementation,
           "ids": ids.tolist(), "logits": logits.tolist(), "problems": problems,
           "lengths": [len(tokenizer), tokenizer.model_max_length]}, open(output, "w"))
"""


def test_a_fresh_process_reloads_identical_logits(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    assert export()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "out"), str(tmp_path / "reloaded")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    reloaded = json.loads((tmp_path / "reloaded").read_text())

    assert reloaded["problems"] == {}
    assert reloaded["class"] == "BertForMaskedLM" and reloaded["attention"] == "sdpa"
    assert reloaded["ids"] == [[2, 5, 6, 4, 8, 3]]
    assert reloaded["lengths"] == [33, 16]
    # JSON keeps every bit of a double, so equality is exact.
    assert torch.equal(torch.tensor(reloaded["logits"]), compute_logits(sparse[0], reloaded["ids"]))


def compute_logits(state: Tensors, input_ids: list[list[int]]) -> torch.Tensor:
    """The logits of a plain model that was never saved."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=33,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, weight in named_weights(model):
            weight.copy_(state[name])
        return model(torch.tensor(input_ids)).logits


def test_what_was_exported_is_read_back(
    export: Callable[..., bool],
    sparse: tuple[Tensors, Tensors],
    tiny_config: ModelConfig,
    tmp_path: Path,
) -> None:
    export()
    state, keep_masks = sparse
    source = open_source(tmp_path / "out", vocabulary=load_vocabulary(tiny_config.vocab))
    check_dimensions(source, tiny_config, words=33)
    loaded = source.read()
    assert loaded.digest == DIGEST
    assert loaded.weights.keys() == state.keys()
    assert all(torch.equal(loaded.weights[name], state[name].flatten()) for name in state)
    assert loaded.masks is not None and loaded.masks.keys() == keep_masks.keys()
    assert all(torch.equal(loaded.masks[n], keep_masks[n].flatten()) for n in keep_masks)
    # The live weight that is 0 by chance is why the file exists.
    assert not torch.equal(loaded.masks[QUERY], loaded.weights[QUERY] != 0)


def test_the_mask_file_is_laid_out_as_documented(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    export()
    with safe_open(tmp_path / "out" / "keep_mask.safetensors", framework="pt") as file:
        metadata = file.metadata()
        packed = file.get_tensor(QUERY)
    assert (metadata["format"], metadata["format_version"]) == ("sparsebert_keep_mask", "1")
    assert metadata["digest"] == DIGEST
    assert json.loads(metadata["shapes"])[QUERY] == [16, 16]
    assert packed.dtype == torch.uint8 and packed.shape == (32,)
    bits = [bool(int(packed[i // 8]) >> (i % 8) & 1) for i in range(256)]
    assert bits == sparse[1][QUERY].flatten().tolist()


def test_a_dense_export_has_no_mask_file(export: Callable[..., bool], tmp_path: Path) -> None:
    export(keep_masks=None, digest=None)
    loaded = open_source(tmp_path / "out").read()
    assert loaded.masks is None and loaded.digest is None
    assert "Dense: none of the" in (tmp_path / "out" / "README.md").read_text()


def test_the_folder_is_plain_hugging_face(export: Callable[..., bool], tmp_path: Path) -> None:
    export()
    folder = tmp_path / "out"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and config["dtype"] == "float32"
    assert "sparsebert" not in json.dumps(config) and "auto_map" not in config
    names = load_file(folder / "model.safetensors").keys()
    assert "bert.embeddings.word_embeddings.weight" in names
    assert not any("decoder" in name for name in names)
    assert type(AutoModel.from_pretrained(folder)).__name__ == "BertModel"
    assert leftovers(tmp_path) == []
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_lower_casing_is_the_tokenizers(
    export: Callable[..., bool], tiny_config: ModelConfig, tmp_path: Path
) -> None:
    export(vocabulary=load_vocabulary(tiny_config.vocab, lower_case=False))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("A a")["input_ids"] == [2, 1, 5, 3]


def test_the_model_card_reports_the_mask(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    export()
    card = (tmp_path / "out" / "README.md").read_text()
    _, front_matter, body = card.split("---\n", 2)
    assert yaml.safe_load(front_matter)["library_name"] == "transformers"
    assert yaml.safe_load(front_matter)["pipeline_tag"] == "fill-mask"
    state, keep_masks = sparse
    prunable = sum(mask.numel() for mask in keep_masks.values())
    total = sum(weight.numel() for weight in state.values())
    pruned = sum(int((~mask).sum()) for mask in keep_masks.values())
    assert prunable == 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert f"| {prunable:,} | {pruned:,} | {pruned / prunable:.4%} |" in body
    assert f"| {total:,} | {pruned:,} | {pruned / total:.4%} |" in body
    first = float((~keep_masks[QUERY]).float().mean())
    assert f"| 0 | {first:.2%} |" in body
    assert DIGEST in body and "# demo" in body and "- step: 40" in body
    assert "| general | 3.2500 |" in body


def test_fill_mask_returns_words_and_probabilities(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    export()
    words = fill_mask(tmp_path / "out", sentence="a b [MASK] d", top_k=3)
    probabilities = compute_logits(sparse[0], [[2, 5, 6, 4, 8, 3]])[0, 3].softmax(-1)
    best = probabilities.topk(3)
    vocab = (tmp_path / "tiny-vocab.txt").read_text().split()
    assert [word for word, _ in words] == [vocab[index] for index in best.indices]
    assert [p for _, p in words] == pytest.approx(best.values.tolist(), rel=1e-6)
    for sentence in ("a b", "[MASK] a [MASK]"):
        with pytest.raises(BadInput, match=r"\[MASK\]"):
            fill_mask(tmp_path / "out", sentence=sentence)


# Refusals of export_model


def test_a_masked_weight_that_is_not_zero_is_refused(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    state, keep_masks = sparse
    state[QUERY].view(-1)[(~keep_masks[QUERY]).view(-1).nonzero()[0]] = 1e-30
    with pytest.raises(BadInput, match=QUERY):
        export()
    assert not (tmp_path / "out").exists() and leftovers(tmp_path) == []


def test_the_same_export_again_is_left_alone(export: Callable[..., bool], tmp_path: Path) -> None:
    assert export()
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert not export()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_an_existing_output_is_refused(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors], tmp_path: Path
) -> None:
    export()
    other_weights = {name: weight * 2 for name, weight in sparse[0].items()}
    for changes in (
        {"report": {**REPORT, "step": 41}},
        {"digest": "f" * 16},
        {"keep_masks": None, "digest": None},
        {"state": other_weights},
    ):
        with pytest.raises(BadInput, match="out exists"):
            export(**changes)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file exists"):
        export(output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_a_failure_leaves_nothing_behind(
    export: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(bert.folders.export, "build_model_card", fail)
    with pytest.raises(OSError, match="no space"):
        export()
    assert not (tmp_path / "out").exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        (
            "num_layers",
            3,
            r"encoder\.layer\.2\..* is missing in the weights: check model.num_layers",
        ),
        ("num_layers", 1, r"encoder\.layer\.1\..* is too many in the weights"),
        ("intermediate_size", 64, r"intermediate\.dense\.weight is .* float32 \[64, 16\]"),
    ],
)
def test_another_configuration_is_refused(
    field: str,
    value: object,
    complaint: str,
    export: Callable[..., bool],
    tiny_config: ModelConfig,
    tmp_path: Path,
) -> None:
    config = ModelConfig(**{**tiny_config.model_dump(), field: value})
    with pytest.raises(BadInput, match=complaint):
        export(model_config=config)
    assert not (tmp_path / "out").exists()


def test_bad_weights_and_masks_are_refused(
    export: Callable[..., bool], sparse: tuple[Tensors, Tensors]
) -> None:
    state, keep_masks = sparse
    with pytest.raises(BadInput, match="float16"):
        export(state={name: weight.half() for name, weight in state.items()})
    with pytest.raises(BadInput, match=QUERY):
        export(keep_masks={name: mask for name, mask in keep_masks.items() if name != QUERY})
    with pytest.raises(BadInput, match="bool tensor"):
        export(keep_masks={**keep_masks, QUERY: keep_masks[QUERY].float()})


def test_a_vocabulary_that_does_not_fit_is_refused(
    export: Callable[..., bool], tmp_path: Path
) -> None:
    vocab = tmp_path / "other.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(BadInput, match=r"word_embeddings.* model\.vocab"):
        export(vocabulary=load_vocabulary(vocab))


def test_fill_mask_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a Hugging Face folder"):
        fill_mask(tmp_path, sentence="a [MASK]")
