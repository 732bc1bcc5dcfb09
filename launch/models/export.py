"""`sparsebert export`: a checkpoint's fragments -> whole masters and masks -> Hugging Face folder.

checkpoint --read_weights--> fp32 by name --apply masks--> bert/folders/export.py --> OUT_DIR
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bert.architecture import named_weights
from bert.folders.export import build_meta_model, export_model
from bert.folders.model_files import read_weights
from bert.folders.source import open_source
from bert.heads import MASKED_LM, Head, task_head
from distributed.checkpoint.reading import Checkpoint
from distributed.errors import BadInput
from launch.models.inspect import count_masks, find_problems, validation_at
from launch.models.saved_state import SavedState, read_state


@dataclass(frozen=True)
class ExportReport:
    """What was exported, for the terminal and for --json."""

    output: Path
    checkpoint: Path
    step: int
    already_done: bool
    parameters: int
    pruned: int
    over_prunable: float | None  # None for a dense model, which has no masks
    over_all: float
    digest: str | None


def export_checkpoint(source: Path, output: Path, *, vocab: Path | None = None) -> ExportReport:
    """Write `source` as a Hugging Face folder.

    Args:
        source: a run (its newest good checkpoint) or a checkpoint.
        output: a folder that does not exist yet, or holds this very export.
        vocab: where the vocabulary lies now, if not where it was in training.

    Raises:
        BadInput: the source, the vocabulary or the output cannot be used.
    """
    found = open_source(
        source, field="export", vocab=vocab, set_vocab="give its place with --vocab FILE"
    )
    checkpoint, vocabulary = found.checkpoint, found.vocabulary
    if checkpoint is None or vocabulary is None:
        raise BadInput(f"{source} is a Hugging Face folder already: give a run or a checkpoint")
    folder, model_config = checkpoint.path, found.config
    counts, digest = count_masks(checkpoint)
    saved = read_state(checkpoint)
    problems = find_problems(saved, counts, digest)
    if problems:
        raise BadInput(f"{folder} contradicts itself ({problems[0]}): export another checkpoint")
    head = _head_of(saved)
    shapes = {
        name: weight.shape
        for name, weight in named_weights(
            build_meta_model(
                model_config, vocab_size=model_config.count_rows(vocabulary.size), head=head
            )
        )
    }
    state, keep_masks = _read_weights(checkpoint, shapes)
    report: dict[str, Any] = {
        "name": checkpoint.section("config").get("name", "BERT"),
        "step": checkpoint.step,
        "tokens_seen": saved.train.tokens_seen,
        "precision": saved.config.train.precision,
        "validation": validation_at(folder.absolute().parent.parent, saved, checkpoint.step),
    }
    written = export_model(
        state,
        model_config=model_config,
        vocabulary=vocabulary,
        keep_masks=keep_masks,
        digest=digest,
        report=report,
        output=output,
        head=head,
    )
    pruned = sum(count.pruned for count in counts.values())
    prunable = sum(count.numel for count in counts.values())
    total = sum(checkpoint.numels.values())
    return ExportReport(
        output=output,
        checkpoint=folder,
        step=checkpoint.step,
        already_done=not written,
        parameters=total,
        pruned=pruned,
        over_prunable=pruned / prunable if prunable else None,
        over_all=pruned / total,
        digest=digest,
    )


def _head_of(saved: SavedState) -> Head:
    """The head that the checkpoint was trained with."""
    if saved.config.task is None:
        return MASKED_LM
    return task_head(saved.config.task.kind, saved.labels)


def _read_weights(
    checkpoint: Checkpoint, shapes: dict[str, torch.Size]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """Masters in their shapes, and masks if there are any; masks are applied."""
    wrong = [n for n, shape in shapes.items() if checkpoint.numels.get(n) != shape.numel()]
    if wrong or checkpoint.numels.keys() - shapes.keys():
        name = wrong[0] if wrong else min(checkpoint.numels.keys() - shapes.keys())
        raise BadInput(
            f"{checkpoint.path} does not fit its own configuration or the vocabulary at {name}: "
            "export another checkpoint"
        )
    read = read_weights(checkpoint)
    state = {name: read.weights[name].view(shape) for name, shape in shapes.items()}
    if read.masks is None:
        return state, None
    keep_masks = {name: keep.view(shapes[name]) for name, keep in read.masks.items()}
    for name, keep in keep_masks.items():
        # No change but for a mask that no applied step has enforced yet.
        state[name].masked_fill_(~keep, 0.0)
    return state, keep_masks
