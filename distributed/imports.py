"""Importing much at once: thousands of modules, and nothing in them for the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """While inside, Python looks for no cyclic garbage.

    An import makes many objects and drops few of them: looking at all of them again and again is a
    fifth of the time that torch and transformers take to import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Not gc.freeze: what is frozen is not released at the end, and Triton complains of that.
        if was_enabled:
            gc.enable()
