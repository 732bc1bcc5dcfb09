import os
from typing import Any

import pytest
import torch

# Triton decides it when it is imported, and transformers imports it: without a GPU our kernels run
# on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

_left_out = 0


def pytest_deselected(items: list[pytest.Item]) -> None:
    global _left_out
    _left_out += sum(item.get_closest_marker("cluster") is not None for item in items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of xdist's processes
        session.config.workeroutput["left_out"] = _left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of xdist's processes has ended; each has left out the same tests."""
    global _left_out
    _left_out = max(_left_out, getattr(node, "workeroutput", {}).get("left_out", 0))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if _left_out and "not cluster" in config.option.markexpr:
        terminalreporter.write_line(
            f"left out: {_left_out} tests on clusters (SLURM, several nodes, faults, kill points, "
            "mutations, network storage, mirrors), sanitizers and the GPU script; "
            "`make test-cluster` runs them"
        )
