"""Plain temperature sampling on the CPU. Each kernel reads a row twice: for its maximum and for its masses."""

from __future__ import annotations

from neurogen.kernels.cpu import everything, truncation

__all__ = ["probs", "sample", "support"]

sample, probs, support = truncation(everything)
