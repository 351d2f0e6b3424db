"""Top-k sampling on CUDA. Each kernel reads a row twice where k is well below a thousand."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cuda import Row, largest, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, k: int) -> Any:
    """The k largest logits (Fan et al., 2018, "Hierarchical Neural Story Generation")."""
    return largest(row, k)


sample, probs, support = truncation(keep, "k")
