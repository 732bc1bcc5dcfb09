"""A valid configuration, and runs with real checkpoints that two pretended ranks wrote."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from bert.architecture import is_prunable, named_weights
from bert.config import ModelConfig, PretrainConfig
from bert.model import build_model
from bert.pretrain import identity
from bert.vocabulary import SPECIAL_TOKENS, load_vocabulary
from distributed.fragment import Fragment
from distributed.hashing import hex_digest, name_hash, position_hash
from sparsity.selection.masks import FragmentMask
from tests.checkpoints import on_ranks, save_checkpoint
from training.folder import RunFolder
from training.identity import write_identity


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz"]) + "\n")
    return file


@pytest.fixture
def settings(tmp_path: Path, vocab: Path) -> dict[str, Any]:
    """A complete and valid configuration, to be changed by each test."""
    return {
        "name": "demo",
        "seed": 1,
        "model": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
            "vocab": str(vocab),
        },
        "data": {"shards": ["data/general"], "max_seq_len": 32, "row_tokens": 64},
        "train": {
            "total_steps": 100,
            "global_batch_rows": 4,
            "micro_batch_rows": 2,
            "learning_rate": 1e-3,
        },
        "evaluation": {"interval_steps": 10, "rows": 4, "sets": {"general": "data/validation"}},
        "zero": {"stage": 2},
        "sparsity": {"schedule": "cubic", "final_sparsity": 0.75, "prune_end_step": 50},
        "launch": {"num_workers": 2, "runs_dir": str(tmp_path / "runs")},
    }


@pytest.fixture
def write_config(tmp_path: Path, settings: dict[str, Any]) -> Callable[..., Path]:
    """Write `settings`, with sections replaced or extended, as YAML."""

    def write(**sections: Any) -> Path:
        merged = dict(settings)
        for name, value in sections.items():
            old = merged.get(name)
            both = isinstance(value, dict) and isinstance(old, dict)
            merged[name] = {**old, **value} if both else value
        file = tmp_path / "demo.yaml"
        file.write_text(yaml.safe_dump(merged))
        return file

    return write


@pytest.fixture
def make_run(settings: dict[str, Any]) -> Callable[..., RunFolder]:
    """Build `demo` with a checkpoint at each step given."""

    def make(*steps: int, dense: bool = False, **state: Any) -> RunFolder:
        config = PretrainConfig.model_validate(settings | ({"sparsity": None} if dense else {}))
        folder = RunFolder(config.launch.runs_dir / config.name)
        folder.create()
        vocabulary = load_vocabulary(config.model.vocab)
        fields = identity(
            config,
            data_fingerprint="d" * 64,
            vocab_sha256=vocabulary.sha256,
            init_fingerprint=None,
            distillation=None,
        )
        write_identity(folder, fields)
        for step in steps:
            masters, keeps = build_weights(config.model, step, vocab_size=vocabulary.size)
            write_checkpoint(
                folder.checkpoints,
                step,
                masters=masters,
                keeps={} if dense else keeps,
                state={
                    "config": config.model_dump(mode="json"),
                    "identity": fields,
                    "train": {"step": step, "tokens_seen": step * 256, "skipped_steps": 0},
                    "sparsity": None if dense else sparsity_state(keeps),
                    "zero_stage": 2,
                    "versions": {"torch": "2.13.0"},
                    **state,
                },
            )
        return folder

    return make


def build_weights(
    model: ModelConfig, seed: int, *, vocab_size: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Masters (flat) and the keep-masks (bool, flat) that make them 3/4 zero, by canonical name."""
    module = build_model(
        model,
        vocab_size=vocab_size,
        pad_id=0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        seed=seed,
    )
    masters = {name: p.detach().clone().view(-1) for name, p in named_weights(module)}
    keeps = {}
    for name in filter(is_prunable, masters):
        cut = masters[name].abs().kthvalue(masters[name].numel() * 3 // 4).values
        keeps[name] = masters[name].abs() > cut
        masters[name][~keeps[name]] = 0.0
    return masters, keeps


def sparsity_state(keeps: dict[str, torch.Tensor]) -> dict[str, Any]:
    digest = sum(
        int(position_hash(name_hash(name), index))
        for name, keep in keeps.items()
        for index in (~keep).nonzero().view(-1)
    )
    return {
        "pruned": {name: int((~keep).sum()) for name, keep in keeps.items()},
        "digest": hex_digest(digest),
        "target": 0.75,
        "threshold": 0.02,
        "last_update_step": 50,
        "pending": False,
    }


def write_checkpoint(
    folder: Path,
    step: int,
    *,
    masters: dict[str, torch.Tensor],
    keeps: dict[str, torch.Tensor],
    state: dict[str, Any],
    world_size: int = 2,
) -> None:
    """Through `save_checkpoint` itself, one thread a rank."""

    def save(rank: int) -> None:
        fragments = {}
        for slot, (name, master) in enumerate(masters.items()):
            start = master.numel() * rank // world_size
            stop = master.numel() * (rank + 1) // world_size
            fragments[Fragment(name, start, stop - start, slot, 0, start, stop)] = master[
                start:stop
            ]
        packed = {}
        for f in fragments:
            if f.name in keeps and f.length:
                mask = FragmentMask(f, torch.device("cpu"))
                mask.load(keeps[f.name][f.start : f.start + f.length])
                packed[f] = mask.pack()
        partition = SimpleNamespace(
            rank=rank,
            world_size=world_size,
            fragments=tuple(fragments),
            numels={name: master.numel() for name, master in masters.items()},
            master=fragments.__getitem__,
            moments=lambda f: {"exp_avg": fragments[f] * 0.1},
            optimizer_steps=lambda: step,
        )
        save_checkpoint(
            folder,
            step=step,
            attempt="test",
            partition=partition,  # type: ignore[arg-type]
            packed_masks=packed,
            state=state,
        )

    on_ranks(world_size, save)


def damage(checkpoint: Path) -> None:
    """Flip a byte of a rank's file: its size stays, its checksum does not."""
    file = next(checkpoint.glob("rank-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
