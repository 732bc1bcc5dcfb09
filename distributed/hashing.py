"""64-bit hashes of names and of logical positions: equal on every rank, machine and partitioning.

`position_hash` is SplitMix64 (Steele, Lea and Flood 2014) seeded by the parameter: a bijection of
the flat index within one parameter, so two weights of one parameter never share a hash.
"""

import hashlib

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SIGN = -(1 << 63)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    value &= (1 << 64) - 1
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
    x = (index + 1) * _signed(_GOLDEN) + uid
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def unsigned_order(hashes: torch.Tensor) -> torch.Tensor:
    """Map int64 hashes so that signed comparison orders them as unsigned numbers."""
    return hashes ^ _SIGN


def hex_digest(value: int) -> str:
    """16 hex digits of a 64-bit sum."""
    return f"{value & ((1 << 64) - 1):016x}"
