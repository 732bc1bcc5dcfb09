"""Importing without the garbage collector, and leaving out what was imported."""

import gc
import subprocess
import sys

import pytest

from distributed.imports import without_collector


def test_the_collector_rests_inside_and_is_back_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), without_collector():
        assert not gc.isenabled()
        with without_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_what_is_frozen_is_released_at_the_end() -> None:
    program = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))  # runs after what is registered later
from distributed.imports import freeze_imports
freeze_imports()
print(gc.get_freeze_count() > 1000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_what_a_run_leaves_is_collected_though_the_next_one_freezes() -> None:
    """As `finetune --local` trains one seed after the other in a process."""
    program = """
import gc, weakref
from distributed.imports import freeze_imports
class Engine:
    def __init__(self):
        self.itself = self
freeze_imports()
engine = Engine()
gone = weakref.ref(engine)
del engine
freeze_imports()
gc.collect()
print(gone() is None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
