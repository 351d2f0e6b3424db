"""The sampler `topnsigma` on CUDA."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cuda import Row, above, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, n: float) -> Any:
    """Logits within n standard deviations of the largest (Tang et al., 2024, "Top-n-sigma")."""
    return above(row, n)


sample, probs, support = truncation(keep, "n")
