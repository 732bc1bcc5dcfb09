"""Pruning for anybody's DeepSpeed loop, in three lines:

engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=...)
sparsity = attach(engine, SparsityConfig(final_sparsity=0.9, prune_end_step=1000))
for step, batch in enumerate(batches):
    sparsity.update(step)
    ...                                  # forward, engine.backward, engine.step as ever
"""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from distributed.errors import BadInput
from distributed.partition import Partition
from distributed.partition_check import check_partition
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig


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
            every nn.Linear that no other module uses.
        resume_step: of a model that was pruned before and is loaded already, the step it goes on
            with: its zeros are its masks. None starts dense.

    Raises:
        BadInput: naming the setting or the parameter that is in the way.
        RuntimeError: on all ranks, if the ranks' partitions do not cover each weight exactly once
            or the weights that the forward reads are not the masters'.
    """
    if engine.optimizer is None:
        raise BadInput("the engine has no optimizer: give one to deepspeed.initialize")
    named = [(_plain(n), p) for n, p in engine.module.named_parameters() if p.requires_grad]
    names = _choose(engine.module, [name for name, _ in named], prunable)
    partition = Partition(engine, named)
    partition.refresh_replicas()
    check_partition(partition)
    sparsity = SparsityController(
        config, partition, prunable=names, optimizer=engine.basic_optimizer
    )
    if resume_step is not None:
        sparsity.resume(resume_step)
    _wrap_step(engine, sparsity)
    return sparsity


def _choose(module: nn.Module, trained: list[str], prunable: Sequence[str] | None) -> list[str]:
    """The plain names of what to prune, each once and of a parameter that is trained."""
    if isinstance(prunable, str):
        raise BadInput(f"prunable is {prunable!r}: give a list of names, prunable=[{prunable!r}]")
    chosen = find_linear_weights(module) if prunable is None else prunable
    names = [_plain(name) for name in chosen]
    if not names:
        raise BadInput(
            "there is nothing to prune: "
            + ("prunable is empty" if prunable is not None else "the model has no nn.Linear")
            + f", its parameters are like prunable=[{trained[0]!r}]"
        )
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"prunable has {name} twice")
        if name not in trained:
            raise BadInput(f"{name} is to be pruned, but {_explain_absence(module, name, trained)}")
    return names


def _explain_absence(module: nn.Module, name: str, trained: list[str]) -> str:
    """Why no trained parameter goes by that name; a tied one goes by its first name only."""
    every = {_plain(n): p for n, p in module.named_parameters(remove_duplicate=False)}
    if name in every:
        first = {id(p): _plain(n) for n, p in module.named_parameters()}[id(every[name])]
        return f"it is {first}: name that" if first != name else "it is not trained (requires_grad)"
    near = difflib.get_close_matches(name, trained, n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"the model trains no parameter of that name{hint}"


def find_linear_weights(module: nn.Module) -> list[str]:
    """Names of the trained weights of nn.Linear modules, but not those shared with others."""
    users: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    linear = {
        id(part.weight)
        for part in module.modules()
        if isinstance(part, nn.Linear) and users[id(part.weight)] == 1 and part.weight.requires_grad
    }
    return [name for name, parameter in module.named_parameters() if id(parameter) in linear]


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


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
