"""The loaded kernel: its C functions, and the self-test that a library passes before it is used."""

import ctypes
import functools
import logging
import math
import struct
import threading
from pathlib import Path

import torch

from sparsebert.inference.build import cached_library, find_prebuilt
from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.layout import LAYER_NAMES, Dimensions
from sparsebert.inference.levels import choose_level, has_amx
from sparsebert.inference.packing import pack

_ABI = 1
_log = logging.getLogger(__name__)
_lock = threading.Lock()


class Kernel:
    """One level's library."""

    def __init__(self, file: Path, level: str) -> None:
        self.level = level
        library = ctypes.CDLL(str(file))
        pointer, int64 = ctypes.c_void_p, ctypes.c_int64
        library.sparsebert_abi.restype = ctypes.c_int
        self._find_fault = library.sparsebert_find_fault
        self._find_fault.argtypes = [pointer, ctypes.c_uint64]
        self._encode = library.sparsebert_encode
        self._encode.argtypes = [pointer] * 3 + [int64] * 2 + [pointer] * 2 + [ctypes.c_int]
        self._release = library.sparsebert_release
        self._release.restype = ctypes.c_uint64
        if library.sparsebert_abi() != _ABI:
            raise OSError(f"{file} is of another version")

    def find_fault(self, packed: torch.Tensor) -> int:
        """0, or the number of the rule in packed.h that the buffer breaks."""
        return int(self._find_fault(packed.data_ptr(), packed.numel()))

    def encode(
        self, x: torch.Tensor, mask: torch.Tensor | None, packed: torch.Tensor, threads: int
    ) -> torch.Tensor:
        """The encoder's output for x [batch, length, hidden], contiguous fp32.

        `mask` is fp32, what is added to the scores, by (sequence, head, query, key); its strides
        may be 0. `packed` has been checked. The interpreter's lock is released meanwhile.
        """
        y = torch.empty_like(x)
        batch, length, _ = x.shape
        strides = (ctypes.c_int64 * 4)(*(mask.stride() if mask is not None else (0,) * 4))
        failed = self._encode(
            packed.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            batch,
            length,
            mask.data_ptr() if mask is not None else None,
            strides,
            threads,
        )
        if failed:
            raise MemoryError(f"no memory for a batch of {batch} x {length} tokens")
        return y

    def release(self) -> int:
        """Give back the scratch memory that calls keep for the next; the bytes released."""
        return int(self._release())


@functools.cache
def _load(level: str) -> Kernel:
    shipped = find_prebuilt(level)
    if shipped is not None:
        return _open(shipped, level)
    try:
        return _open(cached_library(level), level)
    except KernelUnavailable as error:
        if not isinstance(error, _SelfTestFailed):
            raise
        # Damaged on disk, or of a compiler that was replaced under the same version.
        return _open(cached_library(level, rebuild=True), level)


def load_kernel() -> Kernel:
    """The kernel of the best level, or of SPARSEBERT_KERNEL; loaded and tested once a process.

    Raises:
        KernelUnavailable: there is no library and none can be compiled.
        BadInput: the level or the cache is not usable.
    """
    with _lock:
        kernel = _load(choose_level())
        _tell_of_amx()
        return kernel


@functools.cache
def _tell_of_amx() -> None:
    if has_amx():
        _log.info(
            "this processor has AMX: dense bf16 may be faster here than sparse fp32; compare them "
            "with `python -m sparsebert.inference.bench FOLDER --engines sparse,torch,torch-bf16`"
        )


class _SelfTestFailed(KernelUnavailable):
    pass


def _open(file: Path, level: str) -> Kernel:
    try:
        kernel = Kernel(file, level)
    except (OSError, AttributeError) as error:
        raise _SelfTestFailed(
            f"the kernel {file} cannot be loaded ({error}): build it again"
        ) from None
    problem = _test(kernel)
    if problem:
        raise _SelfTestFailed(
            f"the kernel {file} fails its self-test ({problem}): build it again with another "
            "compiler (CXX), or take another level with SPARSEBERT_KERNEL"
        )
    return kernel


def _test(kernel: Kernel) -> str | None:
    """What is wrong with a small encoder's output, against the same in float64; None if nothing."""
    dimensions = Dimensions(hidden=24, inner=40, heads=2, layers=2, layer_norm_eps=1e-12)
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    state = {}
    for layer in range(dimensions.layers):
        for name in LAYER_NAMES:
            tensor = draw(*dimensions.shape(name))
            if tensor.dim() == 2:
                tensor[draw(*tensor.shape) < 0.7] = 0.0
            state[layer, name] = tensor
    packed = pack(dimensions, lambda layer, name: state[layer, name])
    if kernel.find_fault(packed):
        return f"it refuses good weights by rule {kernel.find_fault(packed)}"
    x = draw(3, 37, dimensions.hidden)
    mask = torch.zeros(3, 1, 1, 37)
    mask[1, ..., 20:] = -math.inf
    found = kernel.encode(x, mask.expand(3, 2, 37, 37), packed, threads=2)
    wanted = x.double()
    for layer in range(dimensions.layers):
        wanted = _reference(
            wanted, mask.double(), {n: state[layer, n].double() for n in LAYER_NAMES}, dimensions
        )
    error = (found.double() - wanted).abs().max().item()
    return None if error < 1e-4 else f"an error of {error:.1e}"


def _reference(
    x: torch.Tensor, mask: torch.Tensor, w: dict[str, torch.Tensor], dimensions: Dimensions
) -> torch.Tensor:
    """One dense layer."""
    functional = torch.nn.functional

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        shape = (dimensions.hidden,)
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return functional.layer_norm(x, shape, weight, bias, dimensions.layer_norm_eps)

    heads = (*x.shape[:2], dimensions.heads, -1)
    q, k, v = (
        linear(x, f"attention.self.{part}").view(heads).transpose(1, 2)
        for part in ("query", "key", "value")
    )
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + mask
    context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    a = norm(linear(context, "attention.output.dense") + x, "attention.output.LayerNorm")
    f = functional.gelu(linear(a, "intermediate.dense"))
    return norm(linear(f, "output.dense") + a, "output.LayerNorm")


def release_scratch() -> int:
    """Give back the memory that finished calls keep for later ones; the bytes released."""
    return load_kernel().release()


_verified: dict[tuple[int, int, bytes], tuple[int, int]] = {}


def verify(kernel: Kernel, packed: torch.Tensor) -> tuple[int, int]:
    """Refuse packed weights that the kernel cannot read safely; a buffer is walked once.

    Returns the hidden size and the number of heads.

    Raises:
        BadInput: they are damaged.
    """
    header = packed[:40].numpy().tobytes()
    key = (packed.data_ptr(), packed.numel(), header)
    if key in _verified:
        return _verified[key]
    fault = kernel.find_fault(packed)
    if fault:
        raise BadInput(
            f"the packed weights are damaged (rule {fault}): make the model sparse again"
        )
    if len(_verified) >= 256:
        _verified.clear()
    hidden, _, heads, _ = struct.unpack_from("<IIII", header, 24)
    _verified[key] = hidden, heads
    return hidden, heads
