"""The compiled kernel, once a session and level, in a cache of the session's own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebert.inference.build import CACHE_VARIABLE, cached_library
from sparsebert.inference.levels import supported_levels
from sparsebert.inference.library import Kernel


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    # One for all of pytest-xdist's workers, whose own folders lie in one.
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


# Those whose fp32 code differs: avxvnni computes it as avx2 does, avx512 as the best level does.
FP32_LEVELS = [
    level
    for level in supported_levels()
    if level not in ("avxvnni", "avx512") or level == supported_levels()[-1]
]


@pytest.fixture(scope="session", params=FP32_LEVELS)
def kernel(request: pytest.FixtureRequest, kernel_cache: Path) -> Kernel:
    """The kernel of each such level that this processor runs."""
    return Kernel(cached_library(request.param), request.param)
