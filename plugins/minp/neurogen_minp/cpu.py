"""The sampler `minp` on the CPU."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, heavier, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, min_p: float) -> Any:
    """The tokens at least `min_p` times as probable as the best one (Nguyen et al., 2024, "Turning Up the Heat")."""
    return heavier(row, min_p)


sample, probs, support = truncation(keep, "min_p")
