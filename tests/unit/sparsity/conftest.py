import os
from collections.abc import Callable, Iterator

import pytest
import torch

if not torch.cuda.is_available():  # then Triton's kernels run on the CPU; read when they are made
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, until the test's end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
