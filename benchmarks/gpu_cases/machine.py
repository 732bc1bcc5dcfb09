"""Prints what measures: the card, its driver and the versions of what runs on it, as JSON.

python -m benchmarks.gpu_cases.machine cuda
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import torch

PACKAGES = ("triton", "deepspeed", "transformers", "accelerate", "numpy")


def describe_machine(device: str) -> dict[str, str]:
    """Text by name; `card` and, on a GPU, `driver` are the first."""
    machine = {"card": f"{platform.machine()} CPU, {os.cpu_count()} cores"}
    if device == "cuda":
        machine = {
            "card": torch.cuda.get_device_name(0),
            "driver": _driver(),
            "memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB",
        }
    machine |= {"Python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            machine[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            machine[package] = "missing"
    return machine


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    if sys.argv[1] == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA GPU: pass --smoke to try the cases on the CPU")
    print(json.dumps(describe_machine(sys.argv[1])))
