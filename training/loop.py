"""The training loop, of pretraining and of fine-tuning: what differs is batches and validation.

`train` takes finished objects and returns the final state. It builds nothing and restores nothing:
a fresh run is a restore from the initial weights (see start.py).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from distributed.hashing import position_hash
from distributed.world import AgreedFlag
from distributed.zero import Engine
from training import guards
from training.batches import Batches, Validation
from training.config import TrainConfig
from training.metrics import Metrics
from training.state import TrainState

if TYPE_CHECKING:
    from sparsity.controller import SparsityController


def train(
    config: TrainConfig,
    state: TrainState,
    *,
    seed: int,
    engine: Engine,
    batches: Batches,
    sparsity: "SparsityController | None",
    evaluator: Validation,
    metrics: Metrics,
    save_interval_steps: int,
    save: Callable[[TrainState], None],
    report: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    tell: Callable[[str, str], None],
) -> TrainState:
    """Collective: train from `state` to config.total_steps, or to where all agree to end.

    Args:
        config: what to do.
        state: where to start; weights, moments and masks are restored to it.
        seed: of dropout.
        engine: holds the weights.
        batches: this rank's share of every step.
        sparsity: None trains dense.
        evaluator: validates on the steps that it says are due, and at the last.
        metrics: this run's log.
        save_interval_steps: steps between checkpoints.
        save: writes a checkpoint of the given state.
        report: tells the launcher, after each save; called equally often on all ranks.
        stop_requested: whether this rank was asked to stop; any rank's yes stops all, at a step's
            end.
        tell: called with a kind and a sentence when something happens that a user should know.

    Raises:
        GoBack: to the last checkpoint and past the rows at hand (guards.py).
        Unrecoverable: after too many gradients that are not finite.
    """
    stop, stopping = AgreedFlag(), False
    while state.step < config.total_steps and not stopping and not evaluator.is_satisfied:
        step, batch = state.step, state.batch
        metrics.begin_step()
        if sparsity is not None:
            sparsity.update(step)
        loss_terms = batches.loss_terms(batch)
        for micro_step, micro_batch in enumerate(batches.micro_batches(batch)):
            if config.hidden_dropout or config.attention_dropout:
                seed_dropout(seed, step, micro_step, engine.partition.rank)
            inputs = micro_batch.to(engine.device)
            loss = engine.forward(**inputs, loss_divisor=loss_terms)
            engine.backward(loss)
            metrics.add(batches.loss_name, loss.detach())
        if sparsity is not None:
            sparsity.mask_gradients()
        applied = engine.step(compute_learning_rate(config, step))
        if sparsity is not None:
            sparsity.after_step(applied)
        state = state.after_step(tokens=batches.global_tokens(batch), applied=applied)
        metrics.end_step(batches.global_tokens(batch))
        if not applied:
            rows = batches.row_ids(batch).tolist()
            reason = guards.describe(state.step, epoch=batches.epoch(batch), rows=rows)
            tell("numbers", reason)
            guards.decide(
                config.on_non_finite,
                reason=reason,
                in_a_row=state.skipped_in_a_row,
                most=config.max_non_finite_steps,
                next_batch=batch + 1,
            )
        stopping = stop.agreed(stop_requested())

        is_last = stopping or state.step == config.total_steps
        is_saved = is_last or state.step % save_interval_steps == 0
        if evaluator.is_due(state.step) or state.step == config.total_steps:
            metrics.record(evaluator.evaluate(engine, state.step))
        if is_saved or metrics.has_record or state.step % config.log_interval_steps == 0:
            metrics.record(
                {
                    "train/learning_rate": compute_learning_rate(config, step),
                    "train/grad_norm": engine.grad_norm(),
                    "train/tokens_seen": state.tokens_seen,
                    "train/skipped_steps": state.skipped_steps,
                }
            )
            metrics.flush(state.step, sparsity)
        if is_saved:
            save(state)
            report(metrics.latest)
    return state


def compute_learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update that finishes `step`, counted from 0: warm-up, then decay.

    With rewinds the decay begins anew at warmup_steps + k * lr_rewind_interval_steps, as long as
    that is before lr_rewind_end_step, and there for the last time.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    start, end = _decay_segment(config, step)
    done = (step - start) / max(1, end - start)
    factor = 1 - done if config.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * (config.lr_floor + (1 - config.lr_floor) * factor)


def _decay_segment(config: TrainConfig, step: int) -> tuple[int, int]:
    """First step and end of the decay that `step` is in."""
    interval, last = config.lr_rewind_interval_steps, config.lr_rewind_end_step
    if interval is None or last is None:
        return config.warmup_steps, config.total_steps
    if step >= last:
        return last, config.total_steps
    start = step - (step - config.warmup_steps) % interval
    return start, min(start + interval, last)


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Set torch's generators from where we are, so that a resume needs no saved random state."""
    key = torch.tensor(0)
    for part in (seed, step, micro_step, rank):
        key = position_hash(int(key), torch.tensor(part))
    torch.manual_seed(int(key) & 0x7FFFFFFFFFFFFFFF)
