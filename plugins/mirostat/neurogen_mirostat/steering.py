"""How mu moves from token to token, the same on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neurogen import RowParams, State

__all__ = ["steered"]


def steered(calls: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """The functions of a backend module, from the kernels of a truncation by `mu`.

    A token's surprise is that of the distribution that it was drawn from, so the kernels run twice: for the token, and
    for its probability.
    """

    def sample(logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, state: State) -> Tensor:
        mu = state["mu"]
        rows = RowParams(mu=mu, temperature=params.temperature)
        ids: Tensor = calls.sample(logits, seed, position, rows)
        drawn = calls.probs(logits, rows).gather(1, ids.clamp(min=0).unsqueeze(1)).squeeze(1).double()
        moved = mu - params.eta * (-drawn.log2() - params.tau)
        mu.copy_(torch.where((ids >= 0) & (drawn > 0), moved, mu))
        return ids

    def probs(logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return calls.probs(logits, _next(params, *state))  # type: ignore[no-any-return]

    def support(logits: Tensor, params: RowParams, *state: State) -> Tensor:
        return calls.support(logits, _next(params, *state))  # type: ignore[no-any-return]

    return sample, probs, support


def _next(params: RowParams, *state: State) -> RowParams:
    """Of the next token with a memory; without one, of the first token of a sequence."""
    mu = state[0]["mu"] if state else 2 * params.tau
    return RowParams(mu=mu, temperature=params.temperature)
