"""Top-n-sigma sampling in float64."""

from __future__ import annotations

import numpy as np

from neurogen.reference import Mask, Row, drawable

__all__ = ["support"]


def support(logits: Row, n: float, temperature: float) -> Mask:
    """Logits at least max - n * sigma (Tang et al., 2024, "Top-nsigma: Not All Logits Are You Need"); n = 0 keeps all.

    sigma is the population standard deviation of the finite logits, before the temperature.
    """
    can = drawable(logits, temperature)
    if n == 0 or temperature == 0:
        return can
    depth = logits.max().astype(np.float64) - logits.astype(np.float64)
    return np.asarray(depth <= n * np.std(depth[can]))
