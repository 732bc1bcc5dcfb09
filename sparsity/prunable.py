"""Which of a module's parameters are pruned, and why the others are not.

Unasked: the weight of each nn.Linear that is trained and that no other module uses. What is trained
is what the optimizer's groups hold.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.parameter import UninitializedParameter

from distributed.errors import BadInput
from distributed.partition import full_shape
from sparsity.computed_weights import find_computed

Trained = dict[str, nn.Parameter]  # by plain name, in the module's order

_VECTOR = "biases and vectors"
_FROZEN = "frozen, requires_grad is False"
_FORGOTTEN = "in no parameter group of the optimizer"
_NO_MATRIX_TO_TRAIN = (_FROZEN, _FORGOTTEN, "quantized")  # beginnings of reasons
_EXPECTED = (_VECTOR, "shared", "of Embedding")
_NAMES_SHOWN = 3


@dataclass
class Choice:
    """What is pruned; by reason, what stays dense (nothing where the user named the pruned)."""

    pruned: list[str] = field(default_factory=list)
    dense: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_surprising(self) -> bool:
        """Whether a matrix stays dense that is neither an embedding nor shared."""
        return any(not reason.startswith(_EXPECTED) for reason in self.dense)

    def describe_dense(self) -> str:
        """Names and reasons, matrices first; long lists are cut."""
        reasons = sorted(self.dense, key=lambda reason: reason == _VECTOR)
        return "; ".join(f"{shorten(self.dense[reason])} ({reason})" for reason in reasons)


def find_trained(module: nn.Module, groups: Sequence[Sequence[nn.Parameter]]) -> Trained:
    """The parameters of `module` that the optimizer's groups hold.

    Raises:
        BadInput: there is none, or a parameter has no values yet.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise BadInput(
                f"{plain_name(name)} has no shape yet, as in nn.LazyLinear: run a batch through "
                "the model before deepspeed.initialize"
            )
    held = {id(p) for group in groups for p in group}
    trained = {plain_name(n): p for n, p in module.named_parameters() if id(p) in held}
    if not trained:
        raise BadInput("the optimizer's parameter groups hold no parameter of the engine's module")
    return trained


def find_forgotten(module: nn.Module, trained: Trained) -> list[str]:
    """Parameters that require gradients and that no group of the optimizer holds."""
    return [
        plain_name(name)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and plain_name(name) not in trained
        and 0 not in full_shape(parameter)  # DeepSpeed leaves out what has no elements
    ]


def choose_prunable(module: nn.Module, trained: Trained, prunable: Sequence[str] | None) -> Choice:
    """What to prune: what `prunable` names, or the trained weights of nn.Linear.

    Raises:
        BadInput: naming a parameter that cannot be pruned, and why.
    """
    if prunable is None:
        return _choose_unasked(module, trained)
    if isinstance(prunable, str):
        raise BadInput(f"prunable is {prunable!r}: give a list of names, prunable=[{prunable!r}]")
    names = [plain_name(name) for name in prunable]
    if not names:
        raise BadInput(
            "there is nothing to prune: prunable is empty, the model's parameters are like "
            f"prunable=[{next(iter(trained))!r}]"
        )
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"prunable has {name} twice")
        if name not in trained or not trained[name].requires_grad:
            raise BadInput(f"{name} is to be pruned, but {_explain_absence(module, name, trained)}")
    return Choice(names)


def find_linear_weights(module: nn.Module) -> list[str]:
    """Names of the trained weights of nn.Linear modules, but not those shared with others.

    Raises:
        BadInput: naming a weight that an nn.Linear computes from other parameters.
    """
    trained = {plain_name(n): p for n, p in module.named_parameters() if p.requires_grad}
    pruned = set(_choose_linear(module, trained).pruned)
    return [name for name, _ in module.named_parameters() if plain_name(name) in pruned]


def find_sources(module: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Of these parameters, those that a weight is computed from, and the weight's name."""
    found: dict[str, str] = {}
    for layer, part in module.named_modules():
        for computed in find_computed(part):
            sources = [_join(layer, source) for source in computed.sources]
            found |= {s: _join(layer, computed.attribute) for s in sources if s in names}
    return found


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def shorten(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _choose_unasked(module: nn.Module, trained: Trained) -> Choice:
    choice = _choose_linear(module, trained)
    linear = {_join(layer, "weight") for layer, part in module.named_modules() if _is_linear(part)}
    for name in choice.dense.get(_FORGOTTEN, []):
        if name in linear:
            others = [other for other in find_forgotten(module, trained) if other != name]
            also = (
                f" (nor {'is' if len(others) == 1 else 'are'} {shorten(others)})" if others else ""
            )
            raise BadInput(
                f"{name} is {_FORGOTTEN}, so it is not trained{also}: add it to a group, freeze it "
                "with requires_grad_(False), or name what to prune with prunable=[...]"
            )
    if not choice.pruned:
        raise BadInput(_explain_nothing(choice))
    return choice


def _choose_linear(module: nn.Module, trained: Trained) -> Choice:
    users: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for layer, part in module.named_modules():
        if _is_linear(part):
            _refuse_computed(layer, part, trained)
        for attribute, parameter in part._parameters.items():
            if parameter is not None:
                users.setdefault(id(parameter), []).append((layer, part, attribute))
    choice = Choice()
    for full_name, parameter in module.named_parameters():
        name = plain_name(full_name)
        reason = _reason_to_stay_dense(name, parameter, users[id(parameter)], trained)
        if reason is None:
            choice.pruned.append(name)
        else:
            choice.dense.setdefault(reason, []).append(name)
    return choice


def _refuse_computed(layer: str, linear: nn.Module, trained: Trained) -> None:
    """Zeros in the parameters that a weight is computed from need not be zeros in the weight."""
    held = {id(p) for p in trained.values() if p.requires_grad}
    for computed in find_computed(linear):
        is_trained = any(id(p) in held for p in computed.sources.values())
        if computed.attribute == "weight" and is_trained:
            told = computed.explain(plain_name(layer))
            raise BadInput(
                f"{_join(layer, 'weight')} is no parameter, as {told}, or name what to prune with "
                "prunable=[...]"
            )


def _reason_to_stay_dense(
    name: str,
    parameter: nn.Parameter,
    users: Sequence[tuple[str, nn.Module, str]],
    trained: Trained,
) -> str | None:
    """None for a weight of an nn.Linear that is to be pruned."""
    _, owner, attribute = users[0]
    kind = type(owner).__name__
    if not parameter.is_floating_point():
        return f"quantized, {str(parameter.dtype).removeprefix('torch.')}"
    if len(full_shape(parameter)) < 2:
        return _VECTOR
    if not parameter.requires_grad:
        return _FROZEN
    if name not in trained:
        return _FORGOTTEN
    if len(users) > 1:
        return f"shared by {shorten([plain_name(layer) or kind for layer, *_ in users])}"
    if _is_linear(owner) and attribute == "weight":
        return None
    if kind == "Conv1D":  # transformers', in GPT-2 and its kin
        return "of Conv1D, which is no nn.Linear and keeps its weight as [inputs, outputs]"
    if kind == "ParametrizationList":
        return "part of a parametrization"
    return f"of {kind}" if kind.startswith("Embedding") else f"of {kind}, which is no nn.Linear"


def _explain_nothing(choice: Choice) -> str:
    """Why no weight is pruned unasked, and what could be named."""
    matrices = Choice(dense={r: names for r, names in choice.dense.items() if r != _VECTOR})
    # Rather a layer than an embedding.
    reasons = [r for r in matrices.dense if not r.startswith(_NO_MATRIX_TO_TRAIN)]
    reasons.sort(key=lambda reason: reason.startswith(_EXPECTED))
    remedy = (
        f"name what to prune, as in prunable=[{matrices.dense[reasons[0]][0]!r}]"
        if reasons
        else "train one, or name what to prune with prunable=[...]"
    )
    return (
        "there is nothing to prune unasked, as no nn.Linear has a trained weight of its own: the "
        f"model has {matrices.describe_dense() or 'no matrix'}; {remedy}"
    )


def _explain_absence(module: nn.Module, name: str, trained: Trained) -> str:
    """Why no trained parameter goes by that name; a tied one goes by its first name only."""
    every = {plain_name(n): p for n, p in module.named_parameters(remove_duplicate=False)}
    if name in every:
        first = {id(p): plain_name(n) for n, p in module.named_parameters()}[id(every[name])]
        if first != name:
            return f"it is {first}: name that"
        if not every[name].requires_grad:
            return "it is not trained (requires_grad)"
        return f"it is {_FORGOTTEN}, so it is not trained: add it to a group"
    for layer, part in module.named_modules():
        for computed in find_computed(part):
            if name == _join(layer, computed.attribute):
                return f"it is no parameter, as {computed.explain(plain_name(layer))}"
    near = difflib.get_close_matches(name, list(trained), n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"the model trains no parameter of that name{hint}"


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)


def _join(layer: str, attribute: str) -> str:
    return plain_name(f"{layer}.{attribute}") if layer else attribute
