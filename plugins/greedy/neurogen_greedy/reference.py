"""Greedy decoding in float64: the argmax alone."""

from __future__ import annotations

from neurogen.reference import Mask, Row, greedy_support

__all__ = ["support"]


def support(logits: Row) -> Mask:
    """The argmax alone, the lowest id among equals."""
    return greedy_support(logits)
