"""The sampler `typical` on the CPU."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, truncation, typical

__all__ = ["probs", "sample", "support"]


def keep(row: Row, typical_p: float) -> Any:
    """Tokens whose surprise is nearest to the entropy, until their mass reaches p (Meister et al., 2022)."""
    return typical(row, typical_p)


sample, probs, support = truncation(keep, "typical_p")
