"""Entropy-based dynamic temperature in float64."""

from __future__ import annotations

import numpy as np

from neurogen import reference
from neurogen.reference import Floats, Mask, Row, drawable

__all__ = ["probs", "support", "temperature_of"]


def support(logits: Row, min_temperature: float, max_temperature: float, exponent: float) -> Mask:
    """Every token above -inf; where both temperatures are 0 the argmax."""
    return drawable(logits, max(min_temperature, max_temperature))


def probs(logits: Row, min_temperature: float, max_temperature: float, exponent: float) -> Floats:
    """softmax(logits / temperature) at the temperature of the row."""
    temperature = temperature_of(logits, min_temperature, max_temperature, exponent)
    return reference.probs(logits, drawable(logits, temperature), temperature)


def temperature_of(logits: Row, min_temperature: float, max_temperature: float, exponent: float) -> float:
    """min + (max - min) * (entropy / largest possible entropy) ** exponent (kalomaze, 2023,
    https://github.com/ggml-org/llama.cpp/pull/4972).

    The entropy is that at temperature 1; the largest possible is the log of the number of tokens above -inf. A
    max_temperature below min_temperature counts as min_temperature.
    """
    can = drawable(logits, 1.0)
    if can.sum() == 1:
        return min_temperature
    p = reference.probs(logits, can, 1.0)
    positive = p[p > 0]
    entropy = -np.sum(positive * np.log(positive))
    share = float(np.clip(entropy / np.log(can.sum()), 0.0, 1.0))
    return float(min_temperature + max(max_temperature - min_temperature, 0.0) * share**exponent)
