"""Mirostat 2 in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neurogen import reference
from neurogen.reference import Mask, Row, drawable, greedy_support

__all__ = ["next_mu", "next_state", "support", "support_at"]


def support(logits: Row, tau: float, eta: float, temperature: float, state: Mapping[str, Any] | None = None) -> Mask:
    """The support of a token with what is remembered, or of the first of a sequence, where mu = 2 * tau (Basu et al.,
    2021, "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity").
    """
    return support_at(logits, 2 * tau if state is None else float(state["mu"]), temperature)


def next_state(
    logits: Row, token: int, state: Mapping[str, Any], tau: float, eta: float, temperature: float
) -> dict[str, float]:
    """What is remembered after a token."""
    return {"mu": next_mu(logits, token, float(state["mu"]), tau, eta, temperature)}


def support_at(logits: Row, mu: float, temperature: float) -> Mask:
    """Tokens with a surprise -log2 p <= mu bits at the temperature, and the argmax in any case."""
    can = drawable(logits, temperature)
    if temperature == 0:
        return can
    with np.errstate(over="ignore", under="ignore"):
        depth = (logits.max().astype(np.float64) - logits.astype(np.float64)) / temperature
        surprise = (depth + np.log(np.sum(np.exp(-depth)))) / np.log(2)
    return np.asarray(((surprise <= mu) & can) | greedy_support(logits))


def next_mu(logits: Row, chosen: int, mu: float, tau: float, eta: float, temperature: float) -> float:
    """mu after a token: mu - eta * (its surprise - tau), by its probability among the tokens that were kept.

    llama.cpp measures it so; the code of the paper's authors by the probability among all tokens, which makes the
    surprise larger by -log2 of the mass kept. At temperature 0 nothing is drawn, and mu stays.
    """
    if temperature == 0:
        return mu
    p = reference.probs(logits, support_at(logits, mu, temperature), temperature)[chosen]
    return float(mu - eta * (-np.log2(p) - tau))
