"""Importing without the garbage collector, which is back afterwards."""

import gc

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
