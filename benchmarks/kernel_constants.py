"""Derives the polynomials in sparsebert/inference/kernel/vectors.h and prints their errors.

    python benchmarks/kernel_constants.py

Both are least-squares fits in Chebyshev polynomials on a dense grid, whose weights are raised where
the error is large until it is about level (Lawson's method), evaluated in fp32 as the kernel does.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial, chebyshev
from scipy.special import erf

Array = np.ndarray[Any, np.dtype[np.float64]]
EDGE = 3.92  # erf is within 3e-8 of 1 beyond
COARSE_EDGE = 2.8  # within 8e-5


def fit(
    f: Callable[[Array], Array],
    low: float,
    high: float,
    degree: int,
    weight: Callable[[Array], Array],
) -> Array:
    """Coefficients, lowest first, in u, which runs from -1 to 1 as x does from low to high."""
    x = np.cos(np.linspace(0, math.pi, 4001)) * (high - low) / 2 + (high + low) / 2
    basis = chebyshev.chebvander((2 * x - low - high) / (high - low), degree)
    y, scale, level = f(x), weight(x), np.ones_like(x)
    for _ in range(60):
        rows = scale * np.sqrt(level)
        found = np.linalg.lstsq(basis * rows[:, None], y * rows, rcond=None)[0]
        error = np.abs((basis @ found - y) * scale)
        level *= error / error.max() + 1e-3
        level /= level.mean()
    return chebyshev.cheb2poly(found)


def evaluate(coefficients: Array, u: Any) -> Any:
    """Horner's rule with fused multiply-adds in fp32."""
    total = np.full_like(u, np.float32(coefficients[-1]))
    for c in coefficients[-2::-1]:
        total = (total.astype(np.float64) * u + np.float32(c)).astype(np.float32)
    return total


def erf_over_z(s: Array) -> Array:
    z = np.sqrt(np.maximum(s, 1e-16))
    return np.where(s < 1e-8, 2 / math.sqrt(math.pi) * (1 - s / 3), erf(z) / z)


def main() -> None:
    power = fit(np.exp2, -0.5, 0.5, 5, lambda f: np.exp2(-f))
    power = Polynomial(power)(Polynomial([0, 2])).coef
    f = np.linspace(-0.5, 0.5, 100001).astype(np.float32)
    error = np.abs(evaluate(power, f) / np.exp2(f.astype(np.float64)) - 1).max()
    print("2^f:", *(f"{c:.9g}" for c in power.astype(np.float32)), f"relative error {error:.1e}")
    coarse = fit(erf_over_z, 0.0, COARSE_EDGE**2, 6, lambda s: s + 0.02)
    x = np.linspace(-10, 10, 200001)
    z = np.clip(x / math.sqrt(2), -COARSE_EDGE, COARSE_EDGE).astype(np.float32)
    u = (z * z * np.float32(2 / COARSE_EDGE**2) - np.float32(1)).astype(np.float32)
    error = np.abs(x / 2 * (evaluate(coarse, u) * z - erf(x / math.sqrt(2)))).max()
    print("coarse g(u):", *(f"{c:.9g}" for c in coarse.astype(np.float32)), f"of GELU {error:.1e}")
    g = fit(erf_over_z, 0.0, EDGE**2, 15, lambda s: np.sqrt(s) + 0.02)
    z = np.linspace(-EDGE, EDGE, 200001).astype(np.float32)
    u = (z * z * np.float32(2 / EDGE**2) - np.float32(1)).astype(np.float32)
    error = np.abs(evaluate(g, u) * z - erf(z.astype(np.float64))).max()
    print("g(u):", *(f"{c:.9g}" for c in g.astype(np.float32)), f"error of erf {error:.1e}")


if __name__ == "__main__":
    main()
