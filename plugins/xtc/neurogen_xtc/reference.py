"""Exclude top choices (XTC) in float64."""

from __future__ import annotations

import numpy as np

from neurogen import reference
from neurogen.reference import Floats, Mask, Row, drawable, order

__all__ = ["excluding", "probs", "support"]


def support(logits: Row, threshold: float, probability: float, temperature: float) -> Mask:
    """What can be drawn in either outcome (p-e-w, 2024, "Exclude Top Choices",
    https://github.com/oobabooga/text-generation-webui/pull/6335).
    """
    if probability >= 1:
        return excluding(logits, threshold, temperature)
    return drawable(logits, temperature)


def probs(logits: Row, threshold: float, probability: float, temperature: float) -> Floats:
    """The mixture of both outcomes: with `probability` the top choices are excluded, else all tokens are drawn from."""
    excluded = reference.probs(logits, excluding(logits, threshold, temperature), temperature)
    whole = reference.probs(logits, drawable(logits, temperature), temperature)
    return np.asarray(probability * excluded + (1 - probability) * whole)


def excluding(logits: Row, threshold: float, temperature: float) -> Mask:
    """What is left without the top choices.

    Those are the tokens with p >= threshold at the temperature, but the last of them in order: the least probable, of
    equals the highest id. Where fewer than two reach the threshold, nothing is removed.
    """
    can = drawable(logits, temperature)
    p = reference.probs(logits, can, temperature)
    ids = order(logits)
    reach = ids[p[ids] >= threshold]
    can[reach[:-1]] = False
    return can
