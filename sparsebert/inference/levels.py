"""The kernel's levels: what it is compiled for, and which of them this processor runs.

Levels are named instruction sets, never the building machine's own: a cached or prebuilt library
then runs wherever its level does, and `-march=native` was measured to gain nothing.
"""

import functools
import os
import platform
from pathlib import Path

from sparsebert.inference.errors import BadInput

VARIABLE = "SPARSEBERT_KERNEL"
# Compiler flags by level, best last, for each architecture.
FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "scalar": (),
        "avx2": ("-march=x86-64-v3",),
        "avxvnni": ("-march=x86-64-v3", "-mavxvnni"),
        "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
        "avx512vnni": ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
    },
    "aarch64": {"scalar": (), "neon": ("-march=armv8-a",)},
}
# What /proc/cpuinfo must list for a level; the sets of the x86-64 psABI as far as they show there.
_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEEDS: dict[str, frozenset[str]] = {
    "scalar": frozenset(),
    "avx2": _V3,
    "avxvnni": _V3 | {"avx_vnni"},
    "avx512": _V4,
    "avx512vnni": _V4 | {"avx512_vnni"},
    "neon": frozenset({"asimd"}),
}


def architecture() -> str:
    """This processor's, as `FLAGS` names it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def levels_of(machine: str) -> dict[str, tuple[str, ...]]:
    """Flags by level for an architecture; one that nobody thought of has plain C++."""
    return FLAGS.get(machine, {"scalar": ()})


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def supported_levels() -> list[str]:
    """Levels that this processor runs, best last."""
    return [level for level in levels_of(architecture()) if cpu_flags() >= _NEEDS[level]]


def usable_levels() -> list[str]:
    """Levels to try, best first; where SPARSEBERT_KERNEL is set, that one alone.

    Raises:
        BadInput: the named level does not exist or does not run here.
    """
    supported = supported_levels()
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return supported[::-1]
    if wanted not in supported:
        raise BadInput(
            f"{VARIABLE} is {wanted!r}, but this processor ({architecture()}) runs "
            f"{', '.join(supported)}: choose one of them or unset it"
        )
    return [wanted]


def has_amx() -> bool:
    """Whether the processor multiplies bf16 tiles (AMX), which makes dense bf16 models fast."""
    return "amx_bf16" in cpu_flags()
