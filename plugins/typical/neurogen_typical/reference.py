"""Locally typical sampling in float64."""

from __future__ import annotations

import numpy as np

from neurogen import reference
from neurogen.reference import Mask, Row, drawable, order

__all__ = ["support"]


def support(logits: Row, typical_p: float, temperature: float) -> Mask:
    """The smallest set of tokens, the nearest to the entropy first, whose mass reaches typical_p (Meister et al., 2022,
    "Locally Typical Sampling").

    Near is by |-log p - entropy|; of tokens equally near the larger logit comes first, then the lower id. The token
    that crosses is kept; typical_p = 1 keeps all, exactly.
    """
    can = drawable(logits, temperature)
    if typical_p >= 1 or temperature == 0:
        return can
    p = reference.probs(logits, can, temperature)
    ids = order(logits)[: can.sum()]  # those above -inf, which stand first
    surprise = _surprise(logits, ids, temperature)
    some = p[ids] > 0
    entropy = np.sum(p[ids][some] * surprise[some])
    distance = np.abs(surprise - entropy)
    nearest = ids[np.argsort(distance, kind="stable")]
    mass = np.cumsum(p[nearest])
    crossing = int(np.searchsorted(mass, typical_p * mass[-1], side="left"))
    mask = np.zeros(len(logits), dtype=bool)
    mask[nearest[: crossing + 1]] = True
    return mask


def _surprise(logits: Row, ids: Row, temperature: float) -> Row:
    """-log p in nats of the tokens `ids`, also where p itself is too small for a float64."""
    with np.errstate(over="ignore", under="ignore"):
        depth = (logits.max().astype(np.float64) - logits[ids].astype(np.float64)) / temperature
        return np.asarray(depth + np.log(np.sum(np.exp(-depth))))
