"""Plain temperature sampling on the CPU."""

from __future__ import annotations

from neurogen.kernels.cpu import everything, truncation

__all__ = ["probs", "sample", "support"]

sample, probs, support = truncation(everything)
