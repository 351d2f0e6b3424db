"""Min-p sampling in float64."""

from __future__ import annotations

from neurogen.reference import Mask, Row, drawable, weights

__all__ = ["support"]


def support(logits: Row, min_p: float, temperature: float) -> Mask:
    """Tokens with p >= min_p * max p (Nguyen et al., 2024, "Turning Up the Heat: Min-p Sampling for Creative and
    Coherent LLM Outputs"), measured at the temperature; min_p = 0 keeps all.
    """
    share_of_the_best = weights(logits, temperature)  # the largest weight is 1
    return (share_of_the_best >= min_p) & drawable(logits, temperature)
