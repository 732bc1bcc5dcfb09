"""Every start is a restore: fresh weights, another model's weights, or this run's own checkpoint.

    1. choose a Start                    what to read weights, moments and masks from
    2. fill_module                       before the engine is built: DeepSpeed casts these weights
    3. restore_engine                    after: fp32 values into the masters, moments, masks

Without the third step bf16 training would start from weights that are already rounded.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from distributed.checkpoint.reading import MASK, MASTER, Checkpoint
from distributed.partition import ReadRange
from distributed.partition_check import check_partition
from distributed.zero import Engine
from sparsity.controller import SparsityController
from sparsity.state import SparsityState
from training.state import TrainState, Weight

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


def fresh_start(weights: Sequence[Weight]) -> Start:
    """The weights that their module was built with."""
    values = {w.name: w.parameter.detach().float().clone().view(-1) for w in weights}
    return Start(read_from(values), "new weights")


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


def fill_module(weights: Sequence[Weight], start: Start) -> None:
    """Set the plain module's weights, before the engine is built."""
    with torch.no_grad():
        for weight in weights:
            flat = start.weights(weight.name, 0, weight.parameter.numel())
            weight.parameter.copy_(flat.view(weight.parameter.shape))


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


def read_from(tensors: Mapping[str, torch.Tensor]) -> ReadRange:
    return lambda name, start, length: tensors[name][start : start + length]
