"""Eta sampling in float64."""

from __future__ import annotations

import numpy as np

from neurogen import reference
from neurogen.reference import Floats, Mask, Row, drawable, greedy_support

__all__ = ["support"]


def support(logits: Row, epsilon: float, temperature: float) -> Mask:
    """Tokens with p >= min(epsilon, sqrt(epsilon) * exp(-entropy)) (Hewitt et al., 2022, "Truncation Sampling as
    Language Model Desmoothing"), and the argmax in any case; epsilon = 0 keeps all.

    p and the entropy, in nats, are those at the temperature.
    """
    can = drawable(logits, temperature)
    p = reference.probs(logits, can, temperature)
    eta = min(epsilon, np.sqrt(epsilon) * np.exp(-_entropy(p)))
    return np.asarray(((p >= eta) & can) | greedy_support(logits))


def _entropy(p: Floats) -> float:
    positive = p[p > 0]
    return float(-np.sum(positive * np.log(positive)))
