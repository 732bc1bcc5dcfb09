"""The training loop, of pretraining and of fine-tuning: what differs is batches and validation.

`train` takes finished objects and returns the final state. It builds nothing and restores nothing:
a fresh run is a restore from the initial weights (see restoring.py).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from distributed.hashing import position_hash
from distributed.world import AgreedFlag
from distributed.zero import Engine
from sparsity.controller import SparsityController
from training import guards
from training.config import TrainConfig
from training.metrics import Metrics

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainState:
    """All that a restart needs beside the weights: steps, data and learning rate follow from
    `step`.
    """

    step: int = 0  # finished steps
    tokens_seen: int = 0  # over all ranks, padding not counted
    skipped_steps: int = 0  # finished without an update, for a gradient that was not finite
    skipped_in_a_row: int = 0  # of these, the ones since the last update
    batch_offset: int = 0  # batches passed over for good: step s trains on batch s + this

    @property
    def batch(self) -> int:
        """The batch of the next step."""
        return self.step + self.batch_offset

    def after_step(self, *, tokens: int, applied: bool) -> "TrainState":
        """The state one step later: a skipped step consumes its number and its rows too."""
        return replace(
            self,
            step=self.step + 1,
            tokens_seen=self.tokens_seen + tokens,
            skipped_steps=self.skipped_steps + (not applied),
            skipped_in_a_row=0 if applied else self.skipped_in_a_row + 1,
        )

    def to_dict(self) -> dict[str, int]:
        """For the checkpoint's manifest."""
        return asdict(self)


class Inputs(Protocol):
    """One forward pass."""

    def to(self, device: torch.device) -> dict[str, Any]:
        """The arguments of the model's forward, with the tensors on `device`."""


class Batches(Protocol):
    """This rank's share of every step; each method is a pure function of the step."""

    loss_name: str  # of the loss in the log
    micro_steps: int  # forwards of each rank in a step

    def epoch(self, step: int) -> int:
        """The epoch of the first row of the step's batch."""

    def row_ids(self, step: int) -> Int64Array:
        """Rows of the global batch, int64 [B]: the same on every rank."""

    def loss_terms(self, step: int) -> int:
        """Terms of the mean loss in the global batch."""

    def global_tokens(self, step: int) -> int:
        """Tokens of the global batch."""

    def micro_batches(self, step: int) -> Iterable[Inputs]:
        """As many on every rank."""


class Validation(Protocol):
    """What is measured on held-out data, alike on all ranks."""

    @property
    def is_satisfied(self) -> bool:
        """Whether to end before the last step."""

    def is_due(self, finished_steps: int) -> bool:
        """Whether to validate after that many steps."""

    def evaluate(self, engine: Engine, finished_steps: int) -> dict[str, float]:
        """Collective: the figures."""


def train(
    config: TrainConfig,
    state: TrainState,
    *,
    seed: int,
    engine: Engine,
    batches: Batches,
    sparsity: SparsityController | None,
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
