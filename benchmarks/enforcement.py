"""What enforcing the masks costs a training step, and an update a run: paired dense and sparse.

    python benchmarks/enforcement.py --layers 4 --hidden 768 --rows 8

Two engines with the same model and optimizer, one pruned to 90 %, take the same step in turn, which
goes first changing each time. Reported are the medians of both, of their paired ratio, and (less
noisy) the time inside the hooks and `mask_gradients` as a share of the step.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bert.configuration import ModelConfig
from bert.model import build_model
from bert.weights import is_prunable, named_weights, uses_weight_decay
from distributed.config import ZeroConfig
from distributed.topology import detect_topology, ensure_process_group
from distributed.zero import Engine, build_engine
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig

SEGMENT = 128
UPDATES = 20


def build(options: argparse.Namespace, device: torch.device) -> Engine:
    config = ModelConfig(
        hidden_size=options.hidden,
        num_layers=options.layers,
        num_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        vocab=Path("samples/vocab.txt"),
    )
    module = build_model(
        config, vocab_size=30522, pad_id=0, hidden_dropout=0, attention_dropout=0, seed=1
    )
    weights = named_weights(module)
    engine = build_engine(
        module,
        named_parameters=weights,
        no_decay=[name for name, _ in weights if not uses_weight_decay(name)],
        zero=ZeroConfig(stage=options.stage),
        precision=options.precision,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.01,
        max_grad_norm=1.0,
        micro_batch_rows=options.rows,
        accumulation_steps=1,
        device=device,
    )
    start = {name: p.detach().float().flatten().clone() for name, p in weights if p.numel()}
    if options.stage < 3:
        engine.partition.write_masters(lambda n, at, length: start[n][at : at + length])
    engine.partition.write_moments({}, 0)
    return engine


def batch(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    rows, width = options.rows, SEGMENT
    total = rows * width
    masked = torch.arange(0, total, 7)
    return {
        "input_ids": torch.randint(1000, 30000, (rows, width)).to(device),
        "position_ids": torch.arange(width).expand(rows, width).contiguous().to(device),
        "cu_seqlens": torch.arange(0, total + 1, width, dtype=torch.int32).to(device),
        "max_seqlen": width,
        "masked_positions": masked.to(device),
        "labels": torch.randint(1000, 30000, masked.shape).to(device),
        "loss_divisor": masked.numel(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--interval", type=int, default=100, help="steps between two updates")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    topology = detect_topology(use_gpu=options.device == "cuda")
    ensure_process_group(topology)
    engines = {name: build(options, topology.device) for name in ("dense", "sparse")}
    sparse = engines["sparse"]
    controller = SparsityController(
        SparsityConfig(
            final_sparsity=0.9,
            prune_interval_steps=options.interval,
            prune_end_step=UPDATES * options.interval,
        ),
        sparse.partition,
        prunable=[name for name in sparse.partition.numels if is_prunable(name)],
        optimizer=sparse.deepspeed_engine.basic_optimizer,
    )
    updates = []
    for step in range(UPDATES * options.interval + 1):
        if controller.update(step) and controller.metrics()["sparsity/churn"]:
            updates.append(float(controller.update_metrics()["sparsity/update_seconds"]))
    inside, synchronize = [0.0], _synchronizer(topology.device)
    for name in ("_enforce", "mask_gradients"):
        _time_calls(controller, name, inside, synchronize)
    # The hook was registered as the method it was then.
    base = sparse.deepspeed_engine.basic_optimizer
    base._optimizer_step_post_hooks.clear()
    base.register_step_post_hook(controller._enforce)
    inputs = batch(options, topology.device)
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    shares = []
    for pair in range(options.pairs + 2):
        for name in ("dense", "sparse") if pair % 2 else ("sparse", "dense"):
            inside[0] = 0.0
            synchronize()
            started = time.perf_counter()
            engine = engines[name]
            engine.backward(engine.forward(**inputs))
            if name == "sparse":
                controller.mask_gradients()
            applied = engine.step(1e-4)
            synchronize()
            seconds = time.perf_counter() - started
            if name == "sparse":
                controller.after_step(applied)
            if pair >= 2:  # the first two warm up
                times[name].append(seconds)
                if name == "sparse":
                    shares.append(inside[0] / seconds)
    assert controller.find_violation() is None
    dense, pruned = (statistics.median(times[name]) for name in ("dense", "sparse"))
    ratios = [s / d for s, d in zip(times["sparse"], times["dense"], strict=True)]
    update = statistics.mean(updates)
    print(f"{controller.total_numel:,} weights, {controller.prunable_numel:,} prunable, "
          f"stage {options.stage}, {options.precision}, {topology.device}, "
          f"{torch.get_num_threads()} threads, {options.rows} rows of {SEGMENT}")  # fmt: skip
    print(f"step: dense {dense:.4f} s, sparse {pruned:.4f} s (medians of {options.pairs}); "
          f"paired ratio {statistics.median(ratios):.4f}, middle half "
          f"{statistics.quantiles(ratios, n=4)[0]:.4f} to "
          f"{statistics.quantiles(ratios, n=4)[2]:.4f}")  # fmt: skip
    print(f"inside the hooks and mask_gradients: {statistics.median(shares):.3%} of a step")
    share = update / (options.interval * dense)
    print(f"an update, mean of {len(updates)} from 0 to 90 %: {update:.4f} s, "
          f"{share:.4%} of {options.interval} steps")  # fmt: skip


def _synchronizer(device: torch.device) -> Any:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _time_calls(owner: Any, name: str, total: list[float], synchronize: Any) -> None:
    inner = getattr(owner, name)

    def timed(*args: Any) -> Any:
        synchronize()
        started = time.perf_counter()
        result = inner(*args)
        synchronize()
        total[0] += time.perf_counter() - started
        return result

    setattr(owner, name, timed)


if __name__ == "__main__":
    main()
