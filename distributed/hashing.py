"""64-bit hashes of names and of logical positions: equal on every rank, machine and partitioning.

`position_hash` is SplitMix64 (Steele, Lea and Flood 2014) seeded by the parameter: a bijection of
the flat index within one parameter, so two weights of one parameter never share a hash.
"""

import hashlib

import numpy as np
import torch

_ALL_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SIGN = -(1 << 63)
_CHUNK = 1 << 13  # indices whose temporaries stay in a core's cache


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    value &= _ALL_BITS
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def name_hash(name: str) -> int:
    """A parameter's identity: 64 bits of BLAKE2b over its canonical name, as int64."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def position_hash(uid: int, index: torch.Tensor) -> torch.Tensor:
    """The hash, int64 with the bits of an unsigned one, of flat indices (int64, any shape) of a
    parameter.
    """
    if index.device.type == "cpu":
        return _position_hash_on_host(uid, index)
    x = (index + 1) * _signed(_GOLDEN) + uid
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _position_hash_on_host(uid: int, index: torch.Tensor) -> torch.Tensor:
    """The same in numpy and in place, which is four times as fast."""
    hashes = torch.empty(index.shape, dtype=torch.int64)
    flat_index, flat = index.reshape(-1).numpy(), hashes.view(-1).numpy().view(np.uint64)
    shifted = np.empty(min(_CHUNK, flat.size), dtype=np.uint64)
    for at in range(0, flat.size, _CHUNK):
        x = flat[at : at + _CHUNK]
        y = shifted[: x.size]
        x[:] = flat_index[at : at + _CHUNK]
        x += np.uint64(1)
        x *= np.uint64(_GOLDEN)
        x += np.uint64(uid & _ALL_BITS)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            x ^= np.right_shift(x, np.uint64(shift), out=y)
            x *= np.uint64(factor)
        x ^= np.right_shift(x, np.uint64(31), out=y)
    return hashes


def unsigned_order(hashes: torch.Tensor) -> torch.Tensor:
    """Map int64 hashes so that signed comparison orders them as unsigned numbers."""
    return hashes ^ _SIGN


def hex_digest(value: int) -> str:
    """16 hex digits of a 64-bit sum."""
    return f"{value & _ALL_BITS:016x}"
