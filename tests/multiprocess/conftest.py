from collections.abc import Iterator

import pytest

from tests.multiprocess import pool


@pytest.fixture(scope="session", autouse=True)
def _pools() -> Iterator[None]:
    yield
    pool.stop_all()
