"""Top-p (nucleus) sampling on CUDA. Each kernel reads a row twice where the nucleus has below a thousand tokens."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cuda import Row, nucleus, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, p: float) -> Any:
    """The smallest set of tokens that holds the mass p (Holtzman et al., 2020, "The Curious Case ...")."""
    return nucleus(row, p)


sample, probs, support = truncation(keep, "p")
