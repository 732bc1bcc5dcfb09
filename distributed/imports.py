"""Importing much at once: thousands of modules, and nothing in them for the garbage collector."""

import atexit
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
        if was_enabled:
            gc.enable()


def freeze_imports() -> None:
    """Leave all that is alive now out of the collector's passes, until the process ends.

    Building an engine asks for several full passes. Each takes a quarter of a second with torch,
    DeepSpeed and transformers imported, of which nothing is ever garbage. Only a process's first
    call does something: later ones would keep the engine of an earlier run for good.
    """
    if gc.get_freeze_count():
        return
    gc.freeze()
    # What is frozen at the end is not released, and Triton complains of that.
    atexit.register(gc.unfreeze)
