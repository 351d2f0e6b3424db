"""Mirostat's truncation on CUDA. Each kernel reads a row twice, and the tokens kept."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cuda import Row, likelier, truncation
from neurogen.kernels.numerics import two_to
from neurogen_mirostat.steering import steered

__all__ = ["kernels", "probs", "sample", "support"]


def keep(row: Row, mu: float) -> Any:
    """Tokens whose surprise is at most mu bits (Basu et al., 2021, "Mirostat")."""
    return likelier(row, two_to(-min(max(mu, 0.0), 126.0)))


kernels = truncation(keep, "mu")
sample, probs, support = steered(kernels)
