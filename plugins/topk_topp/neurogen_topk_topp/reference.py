"""Top-p sampling within the k largest logits, in float64."""

from __future__ import annotations

import numpy as np

from neurogen.reference import Mask, Row, topk_support, topp_support

__all__ = ["support"]


def support(logits: Row, k: int, p: float, temperature: float) -> Mask:
    """The nucleus (Holtzman et al., 2020) of the k largest logits (Fan et al., 2018), renormalised; from left to right.

    k = 0 switches off the one, p = 1 the other.
    """
    return topp_support(np.where(topk_support(logits, k, temperature), logits, -np.inf), p, temperature)
