"""Top-p (nucleus) sampling on the CPU."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, nucleus, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, p: float) -> Any:
    """The smallest set of tokens that holds the mass p (Holtzman et al., 2020, "The Curious Case ...")."""
    return nucleus(row, p)


sample, probs, support = truncation(keep, "p")
