"""Top-p within the k largest on the CPU. Each kernel reads a row as often as that of `topk`."""

from __future__ import annotations

from typing import Any

from neurogen.kernels.cpu import Row, largest, nucleus, truncation

__all__ = ["probs", "sample", "support"]


def keep(row: Row, k: int, p: float) -> Any:
    """The nucleus (Holtzman et al., 2020) of the k largest logits (Fan et al., 2018)."""
    return nucleus(row, p, largest(row, k))


sample, probs, support = truncation(keep, "k", "p")
