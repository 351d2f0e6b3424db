"""XTC on CUDA. `sample` reads a row twice, or, where it removes, once more and lists it."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cuda import Row, spared, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, threshold: float) -> Any:
    """All but the tokens with at least `threshold`, and the least probable of these (p-e-w, 2024)."""
    return spared(row, threshold)


sample, probs, support = truncation(keep, "threshold", chance="probability")
