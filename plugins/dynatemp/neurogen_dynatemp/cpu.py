"""Dynamic temperature on the CPU. Each kernel reads a row six times."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, entropy, everything, finite, truncation
from neurogen.kernels.numerics import exact_mul, log2_of, two_to

__all__ = ["probs", "sample", "support"]

LEAST = 1e-30


def temper(row: Row, low: float, high: float, exponent: float) -> Any:
    """low + (high - low) * (entropy / log(tokens))**exponent (kalomaze, 2023)."""
    count = finite(row)
    part = min(entropy(row) / log2_of(float(count)), 1.0) if count > 1 else 0.0
    power = two_to(max(exact_mul(exponent, log2_of(part)), -126.0)) if part > LEAST else (1.0 if exponent == 0 else 0.0)
    return max(low + exact_mul(max(high - low, 0.0), power), 0.0)


def keep(row: Row, low: float, high: float, exponent: float) -> Any:
    """All tokens."""
    return everything(row)


sample, probs, support = truncation(keep, "min_temperature", "max_temperature", "exponent", temper=temper)
