"""Top-p (nucleus) sampling in float64."""

from __future__ import annotations

from neurogen.reference import Mask, Row, topp_support

__all__ = ["support"]


def support(logits: Row, p: float, temperature: float) -> Mask:
    """The nucleus (Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration"); p = 1 keeps all."""
    return topp_support(logits, p, temperature)
