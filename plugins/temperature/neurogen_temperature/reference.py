"""Plain temperature sampling in float64."""

from __future__ import annotations

from neurogen.reference import Mask, Row, drawable

__all__ = ["support"]


def support(logits: Row, temperature: float) -> Mask:
    """Every token above -inf (Ackley et al., 1985, "A Learning Algorithm for Boltzmann Machines"); at 0 the argmax."""
    return drawable(logits, temperature)
