"""Temperature sampling on the CPU. Each kernel reads a row twice."""

from __future__ import annotations

from neurogen.kernels.cpu import everything, truncation

__all__ = ["probs", "sample", "support"]

sample, probs, support = truncation(everything)
