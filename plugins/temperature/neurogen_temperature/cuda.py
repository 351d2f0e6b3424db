"""Temperature sampling on CUDA. Each kernel reads a row twice."""

from __future__ import annotations

from neurogen.kernels.cuda import everything, truncation

__all__ = ["probs", "sample", "support"]

sample, probs, support = truncation(everything)
