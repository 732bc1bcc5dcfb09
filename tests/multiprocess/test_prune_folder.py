"""`sparsebert prune` on several processes: numpy's masks, whatever the number of processes."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from bert.keep_mask import KEEP_MASK_FILE, load_keep_masks
from bert.prune_folder import PruneReport, prune_folder
from bert.weights import canonical_name, is_prunable
from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig
from tests.multiprocess import pool
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


def test_bad_input(dense: Path, tmp_path: Path) -> None:
    options = {"final_sparsity": 0.5}
    assert "exists already" in str(run(2, dense, dense, **options))
    assert "does not exist" in str(run(2, tmp_path, tmp_path / "o", **options))
    assert "--match names" in str(run(2, dense, tmp_path / "o", ("nothing*",), **options))
    other = tmp_path / "other"
    other.mkdir()
    save_file({"conv.weight": torch.randn(4, 4)}, other / "model.safetensors")
    assert "no BERT encoder layer" in str(run(2, other, tmp_path / "o", **options))
    (other / "model.safetensors").write_bytes(b"\\xff" * 100)
    assert "is damaged" in str(run(2, other, tmp_path / "o", **options))
    (other / "model.safetensors").unlink()  # else it is what is read
    (other / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../secret.safetensors"}})
    )
    assert "outside its folder" in str(run(2, other, tmp_path / "o", **options))
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
