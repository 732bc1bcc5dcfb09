"""What enforcing the masks costs a training step, and an update a run: paired dense and sparse.

    python benchmarks/enforcement.py --layers 4 --hidden 768 --rows 8

Two engines with the same model and optimizer, one pruned to 90 %, take the same step in turn, which
goes first changing each time. Reported are the medians of both, of their paired ratio, and (less
noisy) the time inside the hooks and `mask_gradients` as a share of the step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # not needed where sparsebert is installed

from benchmarks.bert_step import (
    VOCAB_SIZE,
    attach_controller,
    build_batch,
    build_bert_engine,
    synchronizer,
    train_step,
)
from distributed.zero import Engine
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig

UPDATES = 20


def prune(engine: Engine, interval: int) -> tuple[SparsityController, list[float]]:
    """Collective: prune to 90 % in 20 updates; seconds of each."""
    end = UPDATES * interval
    config = SparsityConfig(final_sparsity=0.9, prune_interval_steps=interval, prune_end_step=end)
    controller = attach_controller(engine, config)
    seconds = []
    for step in range(0, end + 1, interval):
        controller.update(step)
        if controller.metrics()["sparsity/churn"]:
            seconds.append(controller.update_metrics()["sparsity/update_seconds"])
    return controller, seconds


def time_enforcement(
    engine: Engine, controller: SparsityController, synchronize: Callable[[], None]
) -> list[float]:
    """From now on the only element of the list grows by the seconds spent on the masks."""
    inside = [0.0]
    for name in ("_enforce", "mask_gradients"):
        _time_calls(controller, name, inside, synchronize)
    # The hook was registered as the method it was then.
    base = engine.deepspeed_engine.basic_optimizer
    base._optimizer_step_post_hooks.clear()
    base.register_step_post_hook(controller._enforce)
    return inside


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Collective: figures by name."""
    sizes = {
        "hidden_size": options.hidden,
        "num_layers": options.layers,
        "num_heads": max(1, options.hidden // 64),
        "intermediate_size": 4 * options.hidden,
    }
    dense, sparse = (
        build_bert_engine(
            options.device,
            rows=options.rows,
            sizes=sizes,
            vocab_size=options.vocab_size,
            stage=options.stage,
            precision=options.precision,
        )
        for _ in range(2)
    )
    controller, updates = prune(sparse, options.interval)
    synchronize = synchronizer(options.device)
    inside = time_enforcement(sparse, controller, synchronize)
    batch = build_batch(
        options.device,
        rows=options.rows,
        row_tokens=options.row_tokens,
        packed=False,
        vocab_size=options.vocab_size,
    )
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    shares = []
    for pair in range(options.pairs + 2):
        for name in ("dense", "sparse") if pair % 2 else ("sparse", "dense"):
            inside[0] = 0.0
            synchronize()
            started = time.perf_counter()
            if name == "sparse":
                train_step(sparse, batch, sparsity=controller)
            else:
                train_step(dense, batch)
            synchronize()
            seconds = time.perf_counter() - started
            if pair >= 2:  # the first two warm up
                times[name].append(seconds)
                if name == "sparse":
                    shares.append(inside[0] / seconds)
    assert controller.find_violation() is None
    step, pruned = (statistics.median(times[name]) for name in ("dense", "sparse"))
    ratios = [s / d for s, d in zip(times["sparse"], times["dense"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    update = statistics.mean(updates)
    return {
        "weights": controller.total_numel,
        "prunable": controller.prunable_numel,
        "dense step, s": step,
        "sparse step, s": pruned,
        "paired ratio": statistics.median(ratios),
        "its middle half": [low, high],
        "share of a step on masks": statistics.median(shares),
        "update, s": update,
        "share of updates": update / (options.interval * step),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row-tokens", type=int, default=128)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--interval", type=int, default=100, help="steps between two updates")
    parser.add_argument("--device", default="cpu")
    return parser


def main() -> None:
    options = build_parser().parse_args()
    figures = measure(options)
    low, high = figures["its middle half"]
    print(f"{figures['weights']:,} weights, {figures['prunable']:,} prunable, "
          f"stage {options.stage}, {options.precision}, {options.device}, "
          f"{torch.get_num_threads()} threads, "
          f"{options.rows} rows of {options.row_tokens}")  # fmt: skip
    print(f"step: dense {figures['dense step, s']:.4f} s, sparse {figures['sparse step, s']:.4f} s "
          f"(medians of {options.pairs}); paired ratio {figures['paired ratio']:.4f}, "
          f"middle half {low:.4f} to {high:.4f}")  # fmt: skip
    print("inside the hooks and mask_gradients: "
          f"{figures['share of a step on masks']:.3%} of a step")  # fmt: skip
    print(f"an update, mean of {UPDATES} from 0 to 90 %: {figures['update, s']:.4f} s, "
          f"{figures['share of updates']:.4%} of {options.interval} steps")  # fmt: skip


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
