"""The sampler `epsilon` on the CPU."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, likelier, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, epsilon: float) -> Any:
    """Tokens with a probability of at least epsilon (Hewitt et al., 2022)."""
    return likelier(row, epsilon)


sample, probs, support = truncation(keep, "epsilon")
