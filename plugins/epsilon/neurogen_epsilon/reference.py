"""Epsilon sampling in float64."""

from __future__ import annotations

from neurogen import reference
from neurogen.reference import Mask, Row, drawable, greedy_support

__all__ = ["support"]


def support(logits: Row, epsilon: float, temperature: float) -> Mask:
    """Tokens with p >= epsilon at the temperature (Hewitt et al., 2022, "Truncation Sampling as Language Model
    Desmoothing"), and the argmax in any case; epsilon = 0 keeps all.
    """
    can = drawable(logits, temperature)
    return ((reference.probs(logits, can, temperature) >= epsilon) & can) | greedy_support(logits)
