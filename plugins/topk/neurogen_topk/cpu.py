"""Top-k sampling on the CPU. Each kernel reads a row once, and hardly more than k chunks of 128 again for a small k."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, largest, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, k: int) -> Any:
    """The k largest logits (Fan et al., 2018, "Hierarchical Neural Story Generation")."""
    return largest(row, k)


sample, probs, support = truncation(keep, "k")
