"""When to prune and how much: s(step), the number of weights to prune, and the steps that update.

The cubic schedule is Zhu and Gupta 2017 (arXiv 1710.01878):

    s(t) = s_f + (s_i - s_f) * (1 - (t - t0) / (t1 - t0))^3     for t0 <= t <= t1

and constant outside. After `prune_end_step` the masks no longer change (stabilisation). All
arithmetic is on integers and fractions, so every rank computes the same count without asking
another.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, Self

from pydantic import Field, model_validator

from distributed.config import Config
from sparsity.patterns.name import PatternName


class SparsityGroup(Config):
    """Prunable parameters with a target of their own."""

    match: str = Field(description="shell pattern of parameter names, e.g. *.attention.*")
    final_sparsity: float = Field(ge=0, lt=1)


class SparsityConfig(Config):
    """Which share of the prunable weights is zero, and from which step to which."""

    scope: Literal["global", "per_tensor"] = Field(
        "global",
        description="one threshold for all prunable weights (of a group), or one for each tensor",
    )
    groups: list[SparsityGroup] = Field(
        default_factory=list,
        description="parameters with another final_sparsity and a threshold of their own; the "
        "first group that matches a name takes it, final_sparsity is for the rest",
    )
    pattern: str = Field(
        "unstructured",
        description="unstructured; N:M, e.g. 2:4, keeps at most 2 of 4 neighbouring inputs; "
        "ROWSxCOLUMNS, e.g. 4x1, prunes whole blocks",
    )
    schedule: Literal["cubic", "linear", "one_shot", "frozen"] = Field(
        "cubic",
        description="cubic or linear from start to end; one_shot prunes at prune_start_step only; "
        "frozen keeps the masks of model.init_from",
    )
    initial_sparsity: float = Field(0.0, ge=0, lt=1)
    final_sparsity: float = Field(0.9, ge=0, lt=1)
    prune_start_step: int = Field(0, ge=0, description="first update; steps count from 0")
    prune_end_step: int | None = Field(None, ge=0, description="last update (cubic and linear)")
    prune_interval_steps: int = Field(100, ge=1, description="steps between two updates")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule in ("cubic", "linear"):
            if self.prune_end_step is None:
                raise ValueError(f"sparsity.prune_end_step is required for {self.schedule}")
            if self.prune_end_step < self.prune_start_step:
                raise ValueError(
                    f"sparsity.prune_end_step ({self.prune_end_step}) is before "
                    f"sparsity.prune_start_step ({self.prune_start_step})"
                )
        most = PatternName.parse(self.pattern).max_sparsity
        for field, final in self._finals():
            if self.initial_sparsity > final:
                raise ValueError(
                    f"sparsity.initial_sparsity ({self.initial_sparsity}) is above "
                    f"sparsity.{field} ({final}): a pruned weight stays pruned"
                )
            if Fraction(str(final)) > most:
                raise ValueError(
                    f"sparsity.{field} is {final}, but sparsity.pattern {self.pattern} prunes at "
                    f"most {float(most):g}"
                )
        return self

    def _finals(self) -> Iterator[tuple[str, float]]:
        yield "final_sparsity", self.final_sparsity
        for i, group in enumerate(self.groups):
            yield f"groups.{i}.final_sparsity", group.final_sparsity

    @property
    def last_update_step(self) -> int | None:
        """The step of the last update; None when the masks never change."""
        if self.schedule == "frozen":
            return None
        return self.prune_start_step if self.schedule == "one_shot" else self.prune_end_step


def is_due(config: SparsityConfig, step: int) -> bool:
    """Whether the masks are updated before the batches of `step`."""
    last = config.last_update_step
    if last is None or not config.prune_start_step <= step <= last:
        return False
    return step == last or (step - config.prune_start_step) % config.prune_interval_steps == 0


def last_due_step(config: SparsityConfig, step: int) -> int | None:
    """The step of the last update up to `step`, that one included; None if there was none."""
    last = config.last_update_step
    if last is None or step < config.prune_start_step:
        return None
    if step >= last:
        return last
    return step - (step - config.prune_start_step) % config.prune_interval_steps


def compute_target(
    config: SparsityConfig, step: int, final_sparsity: float | None = None
) -> Fraction:
    """The sparsity that the schedule asks for at `step`, exactly; a group has its own final one."""
    final_sparsity = config.final_sparsity if final_sparsity is None else final_sparsity
    # str() gives the decimal that the user wrote: 0.9 means 9/10, not the nearest binary float.
    initial, final = Fraction(str(config.initial_sparsity)), Fraction(str(final_sparsity))
    last = config.last_update_step
    if last is None or step >= last:
        return final
    if step < config.prune_start_step or config.schedule == "one_shot":
        return Fraction(0)
    remaining = Fraction(last - step, last - config.prune_start_step)
    return final + (initial - final) * remaining ** (3 if config.schedule == "cubic" else 1)


def compute_pruned_count(target: Fraction, numel: int) -> int:
    """How many of `numel` weights `target` prunes: their product, rounded half up."""
    return (2 * target.numerator * numel + target.denominator) // (2 * target.denominator)
