"""BERT in a training engine, and batches for it: what the measurements of a step have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from bert.architecture import is_prunable, named_weights, uses_weight_decay
from bert.config import ModelConfig
from bert.model import build_model
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.world import detect_topology, ensure_process_group
from distributed.zero import Engine, build_engine
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig

VOCAB = Path(__file__).parents[1] / "samples/vocab.txt"
VOCAB_SIZE = 30_522
FIRST_WORD = 999  # ids below are special or unused
BASE = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
TINY_VOCAB_SIZE = 200


def build_bert_engine(
    device_type: str,
    *,
    rows: int,
    sizes: dict[str, int] = BASE,
    vocab_size: int = VOCAB_SIZE,
    stage: int = 2,
    precision: Literal["fp32", "bf16"] = "bf16",
    dropout: float = 0.0,
    seed: int = 1,
) -> Engine:
    """Collective: a fresh BERT at a ZeRO stage, in this process's group or a group of one.

    Args:
        device_type: "cpu" or "cuda".
        rows: of one forward.
        sizes: dimensions, in the words of ModelConfig.
        vocab_size: words that the model knows.
        stage: ZeRO's.
        precision: of the weights that the forward reads.
        dropout: of hidden states; attention has none, as on a GPU.
        seed: of the weights.
    """
    topology = detect_topology(use_gpu=device_type == "cuda")
    ensure_process_group(topology)
    module = build_model(
        ModelConfig.model_validate({**sizes, "vocab": VOCAB}),
        vocab_size=vocab_size,
        pad_id=0,
        hidden_dropout=dropout,
        attention_dropout=0.0,
        seed=seed,
    )
    weights = named_weights(module)
    start = {name: p.detach().float().flatten().clone() for name, p in weights}
    engine = build_engine(
        module,
        named_parameters=weights,
        no_decay=[name for name, _ in weights if not uses_weight_decay(name)],
        optimizer=OptimizerConfig(precision=precision, adam_eps=1e-6, micro_batch_rows=rows),
        zero=ZeroConfig(stage=stage),
        accumulation_steps=1,
        device=topology.device,
    )
    engine.partition.write_masters(lambda name, at, length: start[name][at : at + length])
    engine.partition.refresh_replicas()
    engine.partition.write_moments({}, 0)
    return engine


def attach_controller(engine: Engine, config: SparsityConfig) -> SparsityController:
    """Prune the encoder's matrices as training runs do."""
    return SparsityController(
        config,
        engine.partition,
        prunable=[name for name in engine.partition.numels if is_prunable(name)],
        optimizer=engine.deepspeed_engine.basic_optimizer,
    )


def build_batch(
    device_type: str,
    *,
    rows: int,
    row_tokens: int,
    packed: bool = True,
    vocab_size: int = VOCAB_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """Random rows, 15 % of the tokens masked; some rows hold two segments if `packed`.

    One row in 18 does at 512 tokens, as in text that is packed into rows.
    """
    generator = torch.Generator().manual_seed(seed)
    total = rows * row_tokens
    first = min(FIRST_WORD, vocab_size // 2)
    bounds = torch.arange(0, total + 1, row_tokens)
    if packed:
        more = torch.randint(1, total, (1 + rows // 18,), generator=generator)
        bounds = torch.cat([bounds, more]).unique()
    lengths = bounds.diff()
    starts = torch.repeat_interleave(bounds[:-1], lengths)
    masked = torch.randperm(total, generator=generator)[: max(1, total * 15 // 100)].sort().values
    batch = {
        "input_ids": torch.randint(first, vocab_size, (rows, row_tokens), generator=generator),
        "position_ids": (torch.arange(total) - starts).view(rows, row_tokens),
        "cu_seqlens": bounds.to(torch.int32),
        "masked_positions": masked,
        "labels": torch.randint(first, vocab_size, masked.shape, generator=generator),
    }
    on_device = {name: tensor.to(device_type) for name, tensor in batch.items()}
    return {**on_device, "max_seqlen": int(lengths.max()), "loss_divisor": masked.numel()}


def train_step(
    engine: Engine,
    batch: dict[str, Any],
    *,
    learning_rate: float = 1e-4,
    sparsity: SparsityController | None = None,
) -> torch.Tensor:
    """Collective: one update; the loss before it."""
    loss = engine.forward(**batch)
    engine.backward(loss)
    if sparsity is not None:
        sparsity.mask_gradients()
    applied = engine.step(learning_rate)
    if sparsity is not None:
        sparsity.after_step(applied)
    if not applied:
        raise RuntimeError("a gradient was not finite: the step was skipped")
    detached: torch.Tensor = loss.detach()
    return detached


def synchronizer(device_type: str) -> Callable[[], None]:
    """Waits until the device has done what it was asked for."""
    return torch.cuda.synchronize if device_type == "cuda" else lambda: None
