"""Which weights a cut must prune, told independently: numpy sorts by (magnitude, position hash)."""

import hashlib
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Keep = dict[str, np.ndarray]
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


def n_of_m_oracle(
    weights: Mapping[str, np.ndarray], keep: Keep, n: int, m: int, count: int
) -> Keep:
    """Sort each group in plain Python; then all that may go by (magnitude, hash)."""
    may_go = []
    for row, (name, w) in enumerate(weights.items()):
        hashes = position_hashes(name, w.size)
        for first in range(0, w.size, m):
            group = sorted(
                range(first, first + m), key=lambda i: (keep[name][i], abs(float(w[i])), i)
            )
            for i in group[: m - n]:
                if keep[name][i]:
                    may_go.append((abs(float(w[i])), int(hashes[i]), row, i))
    names = list(weights)
    after = {name: k.copy() for name, k in keep.items()}
    for _, _, row, i in sorted(may_go)[:count]:
        after[names[row]][i] = False
    return after


def blocks_oracle(
    weights: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, int]],
    keep: Keep,
    rows: int,
    columns: int,
    blocks: int,
) -> Keep:
    """Exact sums as fractions, the mean rounded to fp32, then by (mean, hash of the number)."""
    scored = []
    for order, (name, w) in enumerate(weights.items()):
        outputs, inputs = shapes[name]
        grid, alive = w.reshape(outputs, inputs), keep[name].reshape(outputs, inputs)
        hashes = position_hashes(name, w.size)
        for number in range(w.size // (rows * columns)):
            r, c = divmod(number, inputs // columns)
            where = (slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns))
            if alive[where].any():
                exact = sum(Fraction(abs(float(x))) for x in grid[where].flat)
                mean = np.float32(float(exact / (rows * columns)))
                scored.append((float(mean), int(hashes[number]), order, where))
    names = list(weights)
    after = {name: k.reshape(shapes[name]).copy() for name, k in keep.items()}
    for _, _, order, where in sorted(scored, key=lambda s: s[:3])[:blocks]:
        after[names[order]][where] = False
    return {name: k.reshape(-1) for name, k in after.items()}
