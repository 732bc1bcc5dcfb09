"""Which weights a cut must prune, told independently: numpy sorts by (magnitude, position hash)."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]


def name_uid(name: str) -> int:
    """The name's 64 bits as an unsigned number."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def position_hashes(name: str, numel: int) -> UInt64Array:
    """SplitMix64's outputs 1 to `numel` from the state that the name gives, as unsigned numbers."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, numel + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = steps + np.uint64(name_uid(name))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def expected_keep(
    weights: Mapping[str, npt.NDArray[np.float32]],
    count: int,
    *,
    live: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> dict[str, npt.NDArray[np.bool_]]:
    """The keep-masks after pruning `count` more of the live weights of one scope."""
    names = list(weights)
    alive = [np.ones(weights[n].size, bool) if live is None else live[n] for n in names]
    keep = np.concatenate(alive)
    magnitudes = np.concatenate([np.abs(weights[n]) for n in names])
    hashes = np.concatenate([position_hashes(n, weights[n].size) for n in names])
    candidates = np.flatnonzero(keep)
    order = np.lexsort((hashes[candidates], magnitudes[candidates]))
    keep[candidates[order[:count]]] = False
    ends = np.cumsum([weights[n].size for n in names])
    return dict(zip(names, np.split(keep, ends[:-1]), strict=True))


def expected_digest(keep: Mapping[str, npt.NDArray[np.bool_]]) -> str:
    """16 hex digits: the sum of the pruned positions' hashes modulo 2^64."""
    total = sum(int(h) for n, k in keep.items() for h in position_hashes(n, k.size)[~k])
    return f"{total % 2**64:016x}"
