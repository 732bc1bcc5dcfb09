"""The model that a path means, and its weights: a run's, a checkpoint's, a Hugging Face folder's.

    path --find_model--> Checkpoint or StoredWeights --read_weights--> flat fp32 weights, masks

What the model is (dimensions, vocabulary, whether it is BERT) stands in source.py. The driver finds
and checks a model once; the ranks read the weights of what it found, and hash nothing again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from bert.folders.config import CONFIG_FILE
from bert.folders.keep_mask import KEEP_MASK_FILE, check_keep_masks, load_keep_masks
from bert.folders.stored_encoder import ENCODER, group_by_parameter, read_parameter
from bert.folders.stored_weights import StoredWeights, describe_other_folder, open_weights
from distributed.checkpoint.manifest import MANIFEST
from distributed.checkpoint.reading import MASK, MASTER, Checkpoint, find_newest
from distributed.errors import BadInput
from distributed.files import sha256_of
from training.folder import RunFolder

# Heads that a run may go on with; others are read if they can be.
_NEEDED = (*ENCODER, "cls.predictions.")

Model = Checkpoint | StoredWeights


@dataclass(frozen=True)
class ModelWeights:
    """Flattened fp32 weights by canonical name, heads among them; masks if there are any."""

    weights: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor] | None  # bool, True = keep
    digest: str | None


def find_model(path: Path, *, verified: bool = False) -> Model:
    """What `path` means as a model: of a run its best or newest good checkpoint.

    Args:
        path: a run, a checkpoint or a Hugging Face folder.
        verified: a checkpoint's checksums were compared before: once is enough.

    Raises:
        BadInput: it is none of these, damaged, or a run without a good checkpoint.
    """
    if is_run(path):
        run = RunFolder(path)
        # Of fine-tuning, once it is done, the one that dev chose.
        checkpoint, refused = find_newest(
            run.best if run.results_file.exists() else run.checkpoints
        )
        if checkpoint is not None:
            return checkpoint
        reason = f"no good checkpoint ({refused[0]})" if refused else "no checkpoint yet"
        raise BadInput(f"the run {path} has {reason}: let it train further or choose another")
    if (path / MANIFEST).is_file():
        return Checkpoint(path, verify=not verified)
    if is_folder(path):
        return open_weights(path)
    if other := describe_other_folder(path):
        raise BadInput(other)
    what = f"has no checkpoints, {MANIFEST} or {CONFIG_FILE}" if path.exists() else "does not exist"
    raise BadInput(f"{path} {what}: give a run, a checkpoint or a Hugging Face folder")


def is_run(path: Path) -> bool:
    """Whether `path` looks like a run folder."""
    run = RunFolder(path)
    return run.checkpoints.is_dir() or run.identity_file.is_file()


def is_folder(path: Path) -> bool:
    """Whether `path` looks like a Hugging Face folder."""
    return (path / CONFIG_FILE).is_file() and not is_run(path) and not (path / MANIFEST).is_file()


def path_of(model: Model) -> Path:
    """Where it lies."""
    return model.path if isinstance(model, Checkpoint) else model.folder


def compute_fingerprint(model: Model) -> str:
    """A hash of a model's weights and masks, wherever and whenever they were written."""
    total = hashlib.sha256()
    if isinstance(model, Checkpoint):
        files = model.manifest.files
        checksums = [files[name].sha256 for name in sorted(files)]
    else:
        checksums = [sha256_of(file) for file in sorted(model.folder.glob("*.safetensors"))]
    for checksum in checksums:
        total.update(bytes.fromhex(checksum))
    return total.hexdigest()


def read_verified(path: Path) -> ModelWeights:
    """The weights and masks of a checkpoint or folder that the driver has opened and checked."""
    return read_weights(find_model(path, verified=True))


def read_weights(model: Model) -> ModelWeights:
    """Every weight and mask of a model.

    Raises:
        BadInput: copies of a weight differ, or the masks are not those of the weights.
    """
    return _read_checkpoint(model) if isinstance(model, Checkpoint) else _read_folder(model)


def _read_checkpoint(checkpoint: Checkpoint) -> ModelWeights:
    read = checkpoint.reader(MASTER)
    weights = {name: read(name, 0, numel) for name, numel in checkpoint.numels.items()}
    if MASK not in checkpoint.kinds:
        return ModelWeights(weights, None, None)
    read_mask = checkpoint.reader(MASK)
    masks = {
        name: read_mask(name, 0, numel)
        for name, numel in checkpoint.numels.items()
        if checkpoint.holds(MASK, name)
    }
    digest = checkpoint.section("sparsity").get("digest")
    if not isinstance(digest, str):
        raise checkpoint.damaged_at("sparsity", "digest")
    return ModelWeights(weights, masks, digest)


def _read_folder(stored: StoredWeights) -> ModelWeights:
    state = {
        name: read_parameter(copies)
        for name, copies in group_by_parameter(stored.tensors).items()
        if not name.endswith("_ids") and (name.startswith(_NEEDED) or copies[0].is_float)
    }
    masks, digest = None, None
    mask_file = stored.folder / KEEP_MASK_FILE
    if mask_file.exists():
        masks, digest = load_keep_masks(mask_file)
        check_keep_masks(state, keep_masks=masks, source=str(mask_file))
        masks = {name: keep.flatten() for name, keep in masks.items()}
    weights = {name: weight.flatten() for name, weight in state.items()}
    return ModelWeights(weights, masks, digest)
