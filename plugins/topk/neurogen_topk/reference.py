"""Top-k sampling in float64."""

from __future__ import annotations

from neurogen.reference import Mask, Row, topk_support

__all__ = ["support"]


def support(logits: Row, k: int, temperature: float) -> Mask:
    """The k largest logits (Fan et al., 2018, "Hierarchical Neural Story Generation"); k = 0 keeps all."""
    return topk_support(logits, k, temperature)
