"""The piece of a parameter that one rank holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fragment:
    """The range [start, start + length) of a flattened parameter, at `offset` of master `slot`.

    This rank owns [owned_start, owned_stop) of it: over all ranks every weight is owned exactly
    once.
    """

    name: str
    start: int
    length: int
    slot: int
    offset: int
    owned_start: int
    owned_stop: int

    @property
    def owned(self) -> slice:
        """The owned part, relative to the fragment."""
        return slice(self.owned_start - self.start, self.owned_stop - self.start)
