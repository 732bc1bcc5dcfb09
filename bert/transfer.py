"""Weights and masks of another model as the start of a run."""

import logging
from pathlib import Path

import torch
from torch import nn

from bert.architecture import is_prunable, named_weights
from bert.folders.model_files import ModelWeights
from bert.folders.stored_encoder import ENCODER
from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig
from training.start import Start, read_from

log = logging.getLogger(__name__)


def transfer_start(
    source: Path,
    model: ModelWeights,
    module: nn.Module,
    *,
    sparsity: SparsityConfig | None,
    encoder_only: bool = False,
) -> Start:
    """Weights and masks of another model; optimizer, schedule and data start anew.

    Args:
        source: where they were read, for the messages.
        model: the weights and masks of `source`.
        module: a new model: its names and sizes count, and a Hugging Face folder without a language
            modelling head takes that from it.
        sparsity: of the new run. Frozen masks are the source's, or its zeros where it has none.
        encoder_only: take embeddings, encoder and pooler, and no head.

    Raises:
        BadInput: `source` does not fit, or its masks would be lost.
    """
    weights, masks, digest = dict(model.weights), model.masks, model.digest
    if encoder_only:
        weights = {n: w for n, w in weights.items() if n.startswith(ENCODER)}
    own = {name: p.detach().float().clone().view(-1) for name, p in named_weights(module)}
    missing = [name for name in own if name not in weights]
    if any(is_prunable(name) for name in missing):
        raise BadInput(f"model.init_from: {source} has no {missing[0]}")
    for name in missing:
        log.warning("%s has no %s: it starts from new weights", source, name)
        weights[name] = own[name]
    for name, value in own.items():
        if weights[name].numel() != value.numel():
            raise BadInput(
                f"model.init_from: {name} has {weights[name].numel()} weights in {source} and "
                f"{value.numel()} with these model.* settings"
            )
    if masks is None and sparsity is not None and sparsity.schedule == "frozen":
        log.warning("%s has no mask file: its zeros are taken as the mask", source)
        masks = {name: weights[name] != 0 for name in own if is_prunable(name)}
        if all(keep.all() for keep in masks.values()):
            raise BadInput(
                f"model.init_from: {source} has neither masks nor zeros, so sparsity.schedule "
                "frozen would train a dense model: choose another schedule or source"
            )
    if masks is not None and sparsity is None:
        raise BadInput(
            f"model.init_from: {source} has masks, and without a sparsity section its zeros would "
            "grow back: add sparsity: {schedule: frozen}"
        )
    if masks is not None and masks.keys() - own.keys():  # of a head that is not taken
        masks, digest = {name: keep for name, keep in masks.items() if name in own}, None
    for name, keep in (masks or {}).items():
        weights[name] = torch.where(keep, weights[name], 0.0)
        grows = sparsity is not None and sparsity.schedule != "frozen"
        if grows and not is_prunable(name) and not keep.all():
            raise BadInput(
                f"model.init_from: {source} prunes {name}, which no run does: only "
                "sparsity.schedule frozen keeps that mask"
            )
    return Start(
        read_from(weights),
        f"model {source}",
        masks=read_from(masks) if masks is not None else None,
        masked=frozenset(masks or {}),
        digest=digest,
    )
