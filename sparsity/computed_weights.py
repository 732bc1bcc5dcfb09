"""Weights that are no parameters: a layer computes them from others in each forward.

torch has three mechanisms: parametrizations (of which weight_norm and spectral_norm are two), the
older hooks of these two, and torch.nn.utils.prune.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

# Parameter that an older hook leaves -> what it leaves besides, whose hook it is, what undoes it.
_HOOKS = (
    ("orig", "mask", "prune", "prune.remove"),
    ("orig", "u", "spectral_norm", "remove_spectral_norm"),
    ("v", "g", "weight_norm", "remove_weight_norm"),
)


@dataclass(frozen=True)
class ComputedWeight:
    """The attribute of a layer, and the parameters that it is computed from."""

    attribute: str
    sources: dict[str, nn.Parameter]  # by their names in the layer
    mechanism: str
    remover: str

    def explain(self, layer: str) -> str:
        """What stands in the weight's place, and how to have the weight."""
        arguments = f"{layer or 'model'}, {self.attribute!r}"
        return (
            f"each forward computes it from {' and '.join(self.sources)} ({self.mechanism}): call "
            f"torch.nn.utils.{self.remover}({arguments}) before deepspeed.initialize"
        )


def find_computed(layer: nn.Module) -> Iterator[ComputedWeight]:
    """All weights that `layer` computes."""
    for attribute, chain in getattr(layer, "parametrizations", {}).items():
        kinds = ", ".join(type(step).__name__.lstrip("_") for step in chain)
        sources = {
            f"parametrizations.{attribute}.{name}": parameter
            for name, parameter in chain.named_parameters()
        }
        mechanism = f"torch's parametrization {kinds}"
        remover = "parametrize.remove_parametrizations"
        yield ComputedWeight(attribute, sources, mechanism, remover)
    own = {
        name: parameter for name, parameter in layer._parameters.items() if parameter is not None
    }
    for ending, companion, mechanism, remover in _HOOKS:
        for name in own:
            attribute = name.removesuffix(f"_{ending}")
            other = f"{attribute}_{companion}"
            if attribute == name or attribute in own:
                continue
            if other in own or other in layer._buffers:
                sources = {n: own[n] for n in (other, name) if n in own}
                yield ComputedWeight(attribute, sources, f"torch's {mechanism}", remover)
