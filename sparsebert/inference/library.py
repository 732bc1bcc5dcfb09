"""The loaded kernel: its C functions, and the self-test that a library passes before it is used."""

import ctypes
import functools
import logging
import math
import os
import struct
import threading
from pathlib import Path

import torch

from sparsebert.inference.build import cached_library, find_prebuilt
from sparsebert.inference.errors import BadInput, KernelUnavailable
from sparsebert.inference.layout import LAYER_NAMES, MATRIX_NAMES, Dimensions
from sparsebert.inference.levels import VARIABLE, has_amx, usable_levels
from sparsebert.inference.packing import pack
from sparsebert.inference.quantize import Int8Matrix, quantize_rows

_ABI = 2
_NO_INT8 = 31  # packed.h's rule
_log = logging.getLogger(__name__)
_lock = threading.Lock()


class Kernel:
    """One level's library."""

    def __init__(self, file: Path, level: str) -> None:
        self.level = level
        library = ctypes.CDLL(str(file))
        pointer, int64 = ctypes.c_void_p, ctypes.c_int64
        if library.sparsebert_abi() != _ABI:
            raise OSError(f"{file} is of another version")
        self.has_int8 = bool(library.sparsebert_has_int8())
        self._find_fault = library.sparsebert_find_fault
        self._find_fault.argtypes = [pointer, ctypes.c_uint64]
        self._encode = library.sparsebert_encode
        self._encode.argtypes = [pointer] * 3 + [int64] * 2 + [pointer] * 2 + [ctypes.c_int]
        self._release = library.sparsebert_release
        self._release.restype = ctypes.c_uint64

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
        # A stride of 0 says that the mask repeats, as it does along a dimension of size 1.
        strides = (ctypes.c_int64 * 4)()
        if mask is not None:
            sizes = zip(mask.shape, mask.stride(), strict=True)
            strides[:] = [stride if size > 1 else 0 for size, stride in sizes]
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


_loaded: dict[str | None, Kernel] = {}  # by SPARSEBERT_KERNEL


def load_kernel() -> Kernel:
    """The kernel of the best level, or of SPARSEBERT_KERNEL; loaded and tested once a process.

    If a level cannot be compiled or loaded, the next one is taken, with a warning.

    Raises:
        KernelUnavailable: there is no library and none can be compiled.
        BadInput: the level or the cache is not usable.
    """
    wanted = os.environ.get(VARIABLE)
    with _lock:
        if wanted not in _loaded:
            _loaded[wanted] = _load_best(usable_levels())
        _tell_of_amx()
        return _loaded[wanted]


def _load_best(levels: list[str]) -> Kernel:
    first: KernelUnavailable | None = None
    for level in levels:
        try:
            kernel = _load(level)
        except KernelUnavailable as error:
            first = first or error
            continue
        if first is not None:
            _log.warning("the kernel's level %s serves instead of %s: %s", level, levels[0], first)
        return kernel
    assert first is not None
    raise first


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

    state: dict[tuple[int, str], torch.Tensor] = {}
    for layer in range(dimensions.layers):
        for name in LAYER_NAMES:
            tensor = draw(*dimensions.shape(name))
            if tensor.dim() == 2:
                tensor[draw(*tensor.shape) < 0.7] = 0.0
            state[layer, name] = tensor
    x = draw(3, 37, dimensions.hidden)
    mask = torch.zeros(3, 1, 1, 37)
    mask[1, ..., 20:] = -math.inf
    rounded = {
        key: quantize_rows(tensor) if key[1] in MATRIX_NAMES else tensor
        for key, tensor in state.items()
    }
    # int8 rounds a token's inputs as well, to a part in 254 of the largest.
    for weights, largest in ((state, 1e-4), (rounded, 0.1))[: 2 if kernel.has_int8 else 1]:
        packed = pack(dimensions, lambda *key, weights=weights: weights[key])
        if kernel.find_fault(packed):
            return f"it refuses good weights by rule {kernel.find_fault(packed)}"
        found = kernel.encode(x, mask.expand(3, 2, 37, 37), packed, threads=2)
        wanted = x.double()
        for layer in range(dimensions.layers):
            tensors = {name: _dense(weights[layer, name]).double() for name in LAYER_NAMES}
            wanted = _reference(wanted, mask.double(), tensors, dimensions)
        is_real = mask[:, 0, 0] == 0
        error = (found.double() - wanted)[is_real].abs().max().item()
        if not error < largest:
            return f"an error of {error:.1e}"
    return None


def _dense(weight: torch.Tensor | Int8Matrix) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, Int8Matrix) else weight


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


_verified: dict[tuple[str, int, int, bytes], tuple[int, int]] = {}


def verify(kernel: Kernel, packed: torch.Tensor) -> tuple[int, int]:
    """Refuse packed weights that the kernel cannot read safely; a buffer is walked once.

    Returns the hidden size and the number of heads.

    Raises:
        BadInput: they are damaged.
    """
    header = packed[:40].numpy().tobytes()
    key = (kernel.level, packed.data_ptr(), packed.numel(), header)
    if key in _verified:
        return _verified[key]
    fault = kernel.find_fault(packed)
    if fault == _NO_INT8:
        raise BadInput(
            "the model's int8 weights are packed for a processor with a dot product of bytes, and "
            "this processor, or its kernel, has none: call to_sparse or load_sparse here"
        )
    if fault:
        raise BadInput(
            f"the packed weights are damaged (rule {fault}): make the model sparse again"
        )
    if len(_verified) >= 256:
        _verified.clear()
    hidden, _, heads, _ = struct.unpack_from("<IIII", header, 24)
    _verified[key] = hidden, heads
    return hidden, heads
