"""results.json and predictions.jsonl of fine-tuning: the scores and what they rest on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert.architecture import is_prunable
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.inputs import Inputs
from bert.tasks.predicting import Predictions
from bert.tasks.scores import read_results
from distributed.checkpoint.reading import Checkpoint
from distributed.files import write_atomically
from sparsity.state import SparsityState
from training.folder import RunFolder


def write_results(
    folder: RunFolder,
    found: Mapping[str, Predictions],
    *,
    config: FinetuneConfig,
    inputs: Inputs,
    best: Checkpoint,
    total_steps: int,
    sparsity: SparsityState | None,
) -> None:
    """Write what the best checkpoint scored. Rank 0 only.

    Args:
        folder: the run's.
        found: predictions of dev and, if it was scored, of test; test scores of before are kept.
        config: of the run.
        inputs: the splits, and what was skipped, cut or mended in them.
        best: the checkpoint that was scored.
        total_steps: that were planned.
        sparsity: of the model; None if it is dense.
    """
    before = read_results(folder) or {}
    scores = {name: {"loss": split.loss, **split.figures} for name, split in found.items()}
    masked = sparsity.pruned if sparsity is not None else {}
    prunable = sum(n for name, n in best.numels.items() if is_prunable(name) or name in masked)
    pruned = sum(masked.values())
    total = sum(best.numels.values())
    results = {
        "task": config.task.kind,
        "main_metric": config.task.main_metric,
        "init_from": str(config.model.init_from),
        "seed": config.seed,
        "learning_rate": config.train.learning_rate,
        "epochs": config.train.epochs,
        "total_steps": total_steps,
        "best_step": best.step,
        "dev": scores["dev"],
        "test": scores.get("test", before.get("test")),
        "examples": {name: len(split.examples) for name, split in inputs.data.splits.items()},
        "reports": inputs.reports(),
        "labels": list(inputs.data.labels),
        "classes": inputs.data.classes,
        "warnings": list(inputs.data.warnings),
        "sparsity": {
            "over_prunable": pruned / prunable,
            "parameters_kept_prunable": prunable - pruned,
            "parameters_kept": total - pruned,
            "parameters": total,
            "digest": sparsity.digest if sparsity is not None else None,
        },
    }
    if "test" in found:
        _write_predictions(folder.path / "predictions.jsonl", found["test"].values)
    write_atomically(folder.results_file, json.dumps(results, indent=1).encode() + b"\n")


def _write_predictions(file: Path, values: Sequence[Any]) -> None:
    lines = "".join(json.dumps({"example": i, "predicted": v}) + "\n" for i, v in enumerate(values))
    write_atomically(file, lines.encode())
