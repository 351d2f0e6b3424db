"""Plain temperature sampling on CUDA. `sample` reads a row twice, and a thirty-second of it a third time."""

from __future__ import annotations

from neurogen.kernels.cuda import everything, truncation

__all__ = ["probs", "sample", "support"]

sample, probs, support = truncation(everything)
