"""Pruning for anybody's DeepSpeed loop, in three lines:

engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=...)
sparsity = attach(engine, SparsityConfig(final_sparsity=0.9, prune_end_step=1000))
for step, batch in enumerate(batches):
    sparsity.update(step)
    ...                                  # forward, engine.backward, engine.step as ever
"""

import logging
from collections.abc import Sequence
from typing import Any

from distributed.errors import BadInput
from distributed.partition import Partition
from distributed.partition_check import check_partition
from distributed.support import check_supported, clip_norm, parameter_groups
from sparsity.controller import SparsityController
from sparsity.prunable import (
    Choice,
    Trained,
    choose_prunable,
    find_forgotten,
    find_sources,
    find_trained,
    shorten,
)
from sparsity.prunable import find_linear_weights as find_linear_weights
from sparsity.schedule import SparsityConfig, last_due_step
from sparsity.targets import build_scopes
from sparsity.zero_parameters import find_doomed

log = logging.getLogger(__name__)


def attach(
    engine: Any,
    config: SparsityConfig,
    *,
    prunable: Sequence[str] | None = None,
    resume_step: int | None = None,
) -> SparsityController:
    """Collective: prune what `engine` trains; call `update(step)` before each step's batches.

    `engine.step` is wrapped, so that pruned weights' gradients are zeroed after the last backward
    of a step (out of the clip norm and of Adam's moments) and a skipped update stays pending.

    Names are those of `named_parameters` less what torch.compile puts before them. They decide
    between equal magnitudes and enter the digest.

    Args:
        engine: DeepSpeed's, just initialised with an optimizer, at any ZeRO stage.
        config: when to prune and how much. `schedule: frozen` keeps what is zero already.
        prunable: names of parameters as `named_parameters` gives them; None takes the weight of
            every nn.Linear that is trained and that no other module uses, and logs what stays
            dense.
        resume_step: of a model that was pruned before and is loaded already, the step it goes on
            with: its zeros are its masks. None starts dense.

    Raises:
        BadInput: naming the setting or the parameter that is in the way.
        RuntimeError: on all ranks, if the ranks' partitions do not cover each weight exactly once
            or the weights that the forward reads are not the masters'.
    """
    if engine.optimizer is None:
        raise BadInput("the engine has no optimizer: give one to deepspeed.initialize")
    check_supported(engine)
    trained = find_trained(engine.module, parameter_groups(engine))
    choice = choose_prunable(engine.module, trained, prunable)
    partition = Partition(engine, list(trained.items()))
    partition.refresh_replicas()
    check_partition(partition)
    has_begun = resume_step is not None and last_due_step(config, resume_step - 1) is not None
    unlearned = []
    if prunable is None and not has_begun:
        unlearned = _find_unlearned(config, choice, partition)
    sparsity = SparsityController(
        config,
        partition,
        prunable=choice.pruned,
        optimizer=engine.basic_optimizer,
        must_learn=unlearned,
    )
    if resume_step is not None:
        sparsity.resume(resume_step)
    if partition.rank == 0:
        _log_choice(choice, sparsity, engine)
        _log_what_is_not_trained(engine, trained)
    _wrap_step(engine, sparsity)
    return sparsity


def _find_unlearned(config: SparsityConfig, choice: Choice, partition: Partition) -> list[str]:
    """Collective: matrices of zeros, such as a new adapter's; refused if pruning begins at once."""
    scopes = build_scopes(config, choice.pruned, partition.shapes)
    unlearned = find_doomed(config, scopes, partition)
    if unlearned and config.prune_start_step == 0:
        raise BadInput(
            f"{shorten(unlearned)} would be pruned whole, as all of its weights are zero, and "
            "could never learn: name what to prune with prunable=[...], without it, or let "
            "prune_start_step come later"
        )
    if unlearned and partition.rank == 0:
        log.warning(
            "%s: all weights are zero now; an update that would prune all of them is refused",
            shorten(unlearned),
        )
    return unlearned


def _log_choice(choice: Choice, sparsity: SparsityController, engine: Any) -> None:
    if choice.dense:
        log.info(
            "pruning %d weights in %d parameters: %s",
            sparsity.prunable_numel,
            len(choice.pruned),
            ", ".join(choice.pruned),
        )
        level = logging.WARNING if choice.is_surprising else logging.INFO
        log.log(level, "these parameters stay dense: %s", choice.describe_dense())
    for source, weight in find_sources(engine.module, choice.pruned).items():
        log.warning("%s is pruned, and the forward reads %s, computed from it", source, weight)


def _log_what_is_not_trained(engine: Any, trained: Trained) -> None:
    forgotten = find_forgotten(engine.module, trained)
    if forgotten:
        log.warning(
            "not trained, as no parameter group of the optimizer holds it: %s", shorten(forgotten)
        )
    norm, is_set = clip_norm(engine)
    log.log(
        logging.INFO if is_set else logging.WARNING,
        "gradients are clipped to a norm of %g%s" if norm else "gradients are not clipped%.0s%s",
        norm,
        "" if is_set else ", the default of DeepSpeed: set gradient_clipping, 0 for none",
    )


def _wrap_step(engine: Any, sparsity: SparsityController) -> None:
    inner = engine.step

    def step(*args: Any, **kwargs: Any) -> Any:
        if not engine.is_gradient_accumulation_boundary():
            return inner(*args, **kwargs)
        sparsity.mask_gradients()
        result = inner(*args, **kwargs)
        sparsity.after_step(engine.was_step_applied())
        return result

    engine.step = step
