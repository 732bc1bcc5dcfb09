"""200 steps on a GPU beside the same 200 steps on the CPU: losses, masks, zeros."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.gpu.comparison import SETUPS, Setup, compare, read_runs, train, train_on_cpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

STEPS = 200


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    file = tmp_path_factory.mktemp("cpu") / "runs.jsonl"
    assert train_on_cpu(file, STEPS).wait() == 0
    return read_runs(file)


@pytest.fixture(scope="module", autouse=True)
def _group_ends() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_losses_and_masks_are_the_cpus(setup: Setup, on_cpu: dict[str, dict[str, Any]]) -> None:
    compare(setup, train("cuda", setup, steps=STEPS), on_cpu[setup.on_cpu.name])
