"""Validation: the masked language modelling loss on held-out text, beside a unigram predictor's.

Every masked position becomes [MASK] here (training leaves a tenth as it was), so that the loss
measures prediction from context alone and a predictor without context has nothing to copy from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bert.config import DataConfig, EvaluationConfig
from bert.corpora.batches import MicroBatch, RowBatches, build_validation_batches
from bert.corpora.unigram import load_unigram_counts, unigram_loss
from bert.vocabulary import Vocabulary
from distributed.world import Topology, all_reduce_sum
from distributed.zero import Engine


@dataclass(frozen=True)
class ValidationSet:
    """Rows of one set, and what a unigram predictor scores on the same masked tokens."""

    name: str
    batches: RowBatches
    unigram_loss: float


class Evaluator:
    """Validates on every set of the configuration."""

    def __init__(self, interval_steps: int, sets: Sequence[ValidationSet]) -> None:
        self._interval_steps = interval_steps
        self._sets = tuple(sets)

    def is_due(self, finished_steps: int) -> bool:
        """Whether to validate after that many steps."""
        return bool(self._sets) and finished_steps % self._interval_steps == 0

    @property
    def is_satisfied(self) -> bool:
        """Pretraining goes on to its last step."""
        return False

    def evaluate(self, engine: Engine, finished_steps: int) -> dict[str, float]:
        """Collective: losses (nats a masked token) and accuracies, alike on all ranks."""
        figures: dict[str, float] = {}
        engine.train(False)
        for validation_set in self._sets:
            loss, accuracy = _evaluate_set(engine, validation_set.batches)
            prefix = f"validation/{validation_set.name}"
            figures[f"{prefix}/mlm_loss"] = loss
            figures[f"{prefix}/accuracy"] = accuracy
            figures[f"{prefix}/unigram_loss"] = validation_set.unigram_loss
        engine.train(True)
        return figures


def build_evaluator(
    config: EvaluationConfig,
    data: DataConfig,
    *,
    vocabulary: Vocabulary,
    micro_batch_rows: int,
    topology: Topology,
    cache_dir: Path | None,
) -> Evaluator:
    """Open every set, in the layout of `data`; each rank takes its share of the rows."""
    data = data.model_copy(update={"mlm_probability": config.mlm_probability})
    sets = []
    for name, folders in config.sets.items():

        def rows_of(rank: int, world_size: int, folders: list[Path] = folders) -> RowBatches:
            return build_validation_batches(
                data,
                folders,
                vocabulary=vocabulary,
                rows=config.rows,
                micro_batch_rows=micro_batch_rows,
                rank=rank,
                world_size=world_size,
                cache_dir=cache_dir,
            )

        counts = sum(load_unigram_counts(folder, vocabulary=vocabulary) for folder in folders)
        labels = [b.labels.numpy() for b in rows_of(0, 1).micro_batches(0)]
        baseline = unigram_loss(np.asarray(counts), np.concatenate(labels))
        sets.append(ValidationSet(name, rows_of(topology.rank, topology.world_size), baseline))
    return Evaluator(config.interval_steps, sets)


@torch.no_grad()
def _evaluate_set(engine: Engine, batches: RowBatches) -> tuple[float, float]:
    """Collective: mean loss and accuracy over all masked tokens of the set."""
    sums = torch.zeros(2, dtype=torch.float64)
    for micro_batch in batches.micro_batches(0):
        loss, correct = _forward(engine, micro_batch)
        sums += torch.stack([loss.double(), correct.double()]).cpu()
    loss_sum, correct_sum = (all_reduce_sum(sums) / batches.global_masked_tokens(0)).tolist()
    return loss_sum, correct_sum


def _forward(engine: Engine, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = micro_batch.to(engine.device)
    loss, correct = engine.forward(**inputs, loss_divisor=1.0, count_correct=True)
    return loss, correct
