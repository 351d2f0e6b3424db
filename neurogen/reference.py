"""The semantics of neurogen, in float64 on the CPU: read this first.

Each function works on one row of logits, a NumPy array [vocab] of any float dtype, and is written for the reader, not
for speed: it may sort. Every kernel is held against these functions.

    weights -> a support (greedy, top-k, top-p) -> probs -> draw

Order of tokens, wherever one is needed: by logit descending, then by id ascending. Comparisons are made on the exact
input values; the temperature only changes masses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Floats",
    "Mask",
    "Row",
    "argmax",
    "draw",
    "greedy_support",
    "is_valid",
    "nucleus_margin",
    "order",
    "probs",
    "topk_support",
    "topp_support",
    "weights",
]

Row = NDArray[Any]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


def is_valid(logits: Row) -> bool:
    """Whether a row has a distribution: no NaN, no +inf, and at least one value above -inf."""
    return not np.isnan(logits).any() and bool(np.isfinite(logits.max()))


def order(logits: Row) -> NDArray[np.int64]:
    """All token ids, the largest logit first; among equal logits the lowest id first."""
    ids = np.arange(len(logits))
    return np.lexsort((ids, -logits.astype(np.float64)))


def argmax(logits: Row) -> int:
    """The id of the largest logit, the lowest among equals."""
    return int(np.argmax(logits.astype(np.float64)))


def weights(logits: Row, temperature: float) -> Floats:
    """Unnormalised probabilities exp((x - max x) / temperature); at temperature 0 one-hot at the argmax.

    Args:
        logits: [vocab], valid.
        temperature: >= 0.
    """
    if temperature == 0:
        one_hot = np.zeros(len(logits))
        one_hot[argmax(logits)] = 1.0
        return one_hot
    x = logits.astype(np.float64)
    with np.errstate(under="ignore", over="ignore"):
        return np.asarray(np.exp((x - x.max()) / temperature))


def drawable(logits: Row, temperature: float) -> Mask:
    """Tokens that can be drawn before any truncation: those above -inf; at temperature 0 the argmax alone."""
    return weights(logits, 0) > 0 if temperature == 0 else np.isfinite(logits.astype(np.float64))


def greedy_support(logits: Row) -> Mask:
    """The argmax alone."""
    return weights(logits, 0) > 0


def topk_support(logits: Row, k: int, temperature: float = 1.0) -> Mask:
    """The k largest logits (Fan et al., 2018, "Hierarchical Neural Story Generation"); k = 0 keeps all.

    Exactly k tokens are kept even when the k-th is tied, or fewer where fewer are above -inf.
    """
    can = drawable(logits, temperature)
    if k == 0:
        return can
    mask = np.zeros(len(logits), dtype=bool)
    mask[order(logits)[:k]] = True
    return mask & can


def topp_support(logits: Row, p: float, temperature: float = 1.0) -> Mask:
    """The nucleus (Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration").

    The smallest prefix, in order, whose mass reaches p; the token that crosses is kept. p = 1 keeps all, exactly.
    """
    can = drawable(logits, temperature)
    if p >= 1:
        return can
    mass = weights(logits, temperature)
    ids = order(logits)
    prefix = np.cumsum(mass[ids])
    crossing = int(np.searchsorted(prefix, p * prefix[-1], side="left"))
    mask = np.zeros(len(logits), dtype=bool)
    mask[ids[: crossing + 1]] = True
    return mask & can


def nucleus_margin(logits: Row, p: float, temperature: float = 1.0) -> float:
    """How far p is from the nearest step of the cumulative distribution, as a share of the whole mass.

    Where this is below the precision of a kernel's masses (1e-6), the nucleus is ambiguous: a kernel may keep one token
    more or fewer than `topp_support`.
    """
    mass = weights(logits, temperature)
    prefix = np.cumsum(mass[order(logits)])
    return float(np.abs(prefix / prefix[-1] - p).min())


def probs(logits: Row, support: Mask, temperature: float = 1.0) -> Floats:
    """The distribution over `support`: weights outside it are zero, the rest is renormalised."""
    mass = np.where(support, weights(logits, temperature), 0.0)
    return np.asarray(mass / mass.sum())


def draw(probabilities: Floats, u: float) -> int:
    """Inverse CDF in id order: the first id at which the cumulative probability exceeds u in [0, 1)."""
    cumulative = np.cumsum(probabilities)
    drawn = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(drawn, int(np.flatnonzero(probabilities)[-1]))
