"""`sparsebert export`: a checkpoint's fragments -> whole masters and masks -> Hugging Face folder.

checkpoint --read_weights--> fp32 by name --apply masks--> bert.export.export_model --> OUT_DIR
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from bert.configuration import ModelConfig
from bert.export import build_meta_model, export_model
from bert.heads import MASKED_LM, Head, task_head
from bert.vocabulary import Vocabulary, load_vocabulary
from bert.weights import named_weights
from distributed.checkpoint import MASK, MASTER, Checkpoint
from distributed.checkpoint_manifest import MANIFEST
from distributed.errors import BadInput
from launch.inspect import count_masks, find_problems, validation_at
from launch.run_folder import resolve_source
from launch.saved_state import SavedState, read_state


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
    folder = resolve_source(source)
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"{source} is a Hugging Face folder already: give a run or a checkpoint")
    # A run's checkpoint has just been verified.
    checkpoint = Checkpoint(folder, verify=folder == source)
    config, model_config = _read_configs(checkpoint)
    vocabulary = _find_vocabulary(checkpoint, vocab or model_config.vocab)
    counts, digest = count_masks(checkpoint)
    saved = read_state(checkpoint)
    problems = find_problems(saved, counts, digest)
    if problems:
        raise BadInput(f"{folder} contradicts itself ({problems[0]}): export another checkpoint")
    head = _head_of(saved)
    shapes = {
        name: weight.shape
        for name, weight in named_weights(
            build_meta_model(model_config, vocab_size=vocabulary.size, head=head)
        )
    }
    state, keep_masks = _read_weights(checkpoint, shapes)
    report: dict[str, Any] = {
        "name": config.get("name", "BERT"),
        "step": checkpoint.step,
        "tokens_seen": saved.train.tokens_seen,
        "precision": saved.config.train.precision,
        "validation": validation_at(folder.absolute().parent.parent, saved, checkpoint.step),
    }
    written = export_model(
        state,
        model_config=model_config,
        vocab=vocabulary.path,
        keep_masks=keep_masks,
        digest=digest,
        report=report,
        output=output,
        lower_case=vocabulary.lower_case,
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


def _read_configs(checkpoint: Checkpoint) -> tuple[dict[str, Any], ModelConfig]:
    config = checkpoint.section("config")
    try:
        return config, ModelConfig.model_validate(config.get("model"))
    except ValidationError:
        raise BadInput(
            f"{checkpoint.path / MANIFEST} does not describe a model that this release knows: "
            "export it with the release that wrote it"
        ) from None


def _find_vocabulary(checkpoint: Checkpoint, path: Path) -> Vocabulary:
    if not path.is_file():
        raise BadInput(f"the vocabulary {path} is not there: give its place with --vocab FILE")
    model = checkpoint.section("identity", "model")
    vocabulary = load_vocabulary(path, lower_case=model.get("lower_case"))
    if model.get("vocab_sha256", vocabulary.sha256) != vocabulary.sha256:
        raise BadInput(
            f"{path} is not the vocabulary that {checkpoint.path} was trained with: give the right "
            "one with --vocab FILE"
        )
    return vocabulary


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
    read = checkpoint.reader(MASTER)
    state = {name: read(name, 0, shape.numel()).view(shape) for name, shape in shapes.items()}
    if MASK not in checkpoint.kinds:
        return state, None
    read_mask, keep_masks = checkpoint.reader(MASK), {}
    for name, shape in shapes.items():
        try:
            keep_masks[name] = read_mask(name, 0, shape.numel()).view(shape)
        except KeyError:  # not prunable
            continue
        # No change but for a mask that no applied step has enforced yet.
        state[name].masked_fill_(~keep_masks[name], 0.0)
    return state, keep_masks
