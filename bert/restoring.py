"""Every start is a restore: fresh weights, another model's weights, or this run's own checkpoint.

    1. choose a Start                    what to read weights, moments and masks from
    2. fill_module                       before the engine is built: DeepSpeed casts these weights
    3. restore_engine                    after: fp32 values into the masters, moments, masks

Without the third step bf16 training would start from weights that are already rounded.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from bert.model_files import ModelWeights
from bert.pretraining import TrainState
from bert.stored_encoder import ENCODER
from bert.weights import is_prunable, named_weights
from distributed.checkpoint import MASK, MASTER, Checkpoint
from distributed.errors import BadInput
from distributed.partition import ReadRange
from distributed.partition_check import check_partition
from distributed.zero import Engine
from sparsity.controller import SparsityController, SparsityState
from sparsity.schedule import SparsityConfig

log = logging.getLogger(__name__)
AnyState = TypeVar("AnyState")


@dataclass(frozen=True)
class Start:
    """What a run starts from. The readers take (name, start, length) of a flattened parameter."""

    weights: ReadRange
    origin: str  # for the log
    masks: Callable[[str, int, int], torch.Tensor] | None = None
    masked: frozenset[str] = frozenset()  # the parameters that have a mask
    digest: str | None = None
    moments: Mapping[str, ReadRange] = field(default_factory=dict)
    optimizer_steps: int = 0
    state: TrainState = field(default_factory=TrainState)
    sparsity_state: Mapping[str, Any] | None = None


def fresh_start(module: nn.Module) -> Start:
    """The weights that `module` was built with."""
    weights = {name: p.detach().float().clone().view(-1) for name, p in named_weights(module)}
    return Start(_slices(weights), "new weights")


def resume_start(checkpoint: Checkpoint) -> Start:
    """Everything: the run goes on as if it had not stopped."""
    has_masks = MASK in checkpoint.kinds
    state = _parse(TrainState, checkpoint, "train")
    if state.step != checkpoint.step:
        raise checkpoint.damaged_at("train", "step")
    sparsity = None
    if checkpoint.section("sparsity"):
        sparsity = _parse(SparsityState, checkpoint, "sparsity")
    if has_masks != (sparsity is not None):
        raise checkpoint.damaged_at("sparsity")
    return Start(
        checkpoint.reader(MASTER),
        f"checkpoint {checkpoint.path}",
        masks=checkpoint.reader(MASK) if has_masks else None,
        masked=frozenset(sparsity.pruned) if sparsity else frozenset(),
        digest=sparsity.digest if sparsity else None,
        moments={
            kind: checkpoint.reader(kind) for kind in checkpoint.kinds if kind not in (MASTER, MASK)
        },
        optimizer_steps=checkpoint.optimizer_steps,
        state=state,
        sparsity_state=asdict(sparsity) if sparsity else None,
    )


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
        _slices(weights),
        f"model {source}",
        masks=_slices(masks) if masks is not None else None,
        masked=frozenset(masks or {}),
        digest=digest,
    )


def fill_module(module: nn.Module, start: Start) -> None:
    """Set the plain module's weights, before the engine is built."""
    with torch.no_grad():
        for name, parameter in named_weights(module):
            flat = start.weights(name, 0, parameter.numel())
            parameter.copy_(flat.view(parameter.shape))


def restore_engine(engine: Engine, start: Start, sparsity: SparsityController | None) -> None:
    """Collective: exact fp32 masters, moments and masks, and the check that all copies agree."""
    engine.partition.write_masters(start.weights)
    engine.partition.write_moments(start.moments, start.optimizer_steps)
    if sparsity is not None and start.masks is not None:
        sparsity.load_masks(start.masks, expected_digest=start.digest)
        if start.sparsity_state is not None:
            sparsity.load_state(dict(start.sparsity_state))
    check_partition(engine.partition)


def _parse(kind: type[AnyState], checkpoint: Checkpoint, key: str) -> AnyState:
    """A part of a checkpoint's state, as its writer's type.

    Raises:
        BadCheckpoint: naming what is wrong with it.
    """
    try:
        encoded = json.dumps(checkpoint.section(key))
        return TypeAdapter(kind).validate_json(encoded, strict=True)
    except ValidationError as error:
        where = map(str, error.errors()[0]["loc"])
        raise checkpoint.damaged_at(key, *where) from None


def _slices(tensors: Mapping[str, torch.Tensor]) -> ReadRange:
    return lambda name, start, length: tensors[name][start : start + length]
