"""The one exception of this package that a user can do something about."""


class BadInput(ValueError):
    """What was asked for cannot be done: one sentence that says what to change."""


class KernelUnavailable(BadInput):
    """The compiled kernel could not be had; `to_sparse(..., fallback=True)` goes on without it."""
