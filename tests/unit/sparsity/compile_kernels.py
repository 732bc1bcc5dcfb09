"""Compile the Triton kernels for a GPU that need not be there: what each takes of it, as JSON.

    python -m tests.unit.sparsity.compile_kernels 90

Triton carries NVIDIA's assembler. Without TRITON_INTERPRET, which makes functions of the kernels.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsity.selection import device, kernels

KERNELS = ("count_live", "collect", "histogram", "prune")
POINTERS = {
    **dict.fromkeys(("table", "count", "counts", "digests", "places"), "*i64"),
    "keys": "*i32",
}
CONSTANTS = {"TILE": device._TILE, "BLOCK": device._BLOCK}


def resources(name: str, capability: int) -> dict[str, int]:
    """Registers a thread, and bytes of stack and local memory."""
    kernel = getattr(kernels, name)
    arguments = list(inspect.signature(kernel.fn).parameters)
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature={
                a: "constexpr" if a in CONSTANTS else POINTERS.get(a, "i32") for a in arguments
            },
            constexprs={a: CONSTANTS[a] for a in arguments if a in CONSTANTS},
        ),
        target=GPUTarget("cuda", capability, 32),
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        printed = subprocess.run(
            [cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    found = re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)
    return {field.lower(): int(number) for field, number in found}


if __name__ == "__main__":
    print(json.dumps({name: resources(name, int(sys.argv[1])) for name in KERNELS}))
