"""Top-p (nucleus) sampling on the CPU. Each kernel reads a row twice, and again where the nucleus may be."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, nucleus, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, p: float) -> Any:
    """The smallest set of tokens whose mass reaches p.

    Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration".
    """
    return nucleus(row, p)


sample, probs, support = truncation(keep, "p")
