"""Rejection of drafted tokens, as mathematics on tensors: which are accepted, what replaces the first that is not.

With p the target's distribution and q the draft's, a token x drawn from q is accepted with probability
min(1, p(x) / q(x)); else one is drawn from max(p - q, 0), normalised. The result is distributed as p (Leviathan et
al., "Fast Inference from Transformers via Speculative Decoding", ICML 2023; Chen et al., "Accelerating Large Language
Model Decoding with Speculative Sampling", 2023). Knows no model and no sampler.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neurogen.contract.sampler import NO_TOKEN
from neurogen.kernels.numerics import mul_high, random_bits

__all__ = ["ACCEPT_INDEX", "RESIDUAL_INDEX", "accepted_counts", "draw_residual"]

ACCEPT_INDEX = 2**31
"""Which of the numbers of (seed, position) decides on acceptance; far above those that samplers use."""

RESIDUAL_INDEX = 2**31 + 1
"""Which of them selects the token that stands in place of a rejected one."""

UNIT = 2.0**60
"""Probability 1 in the integers that residual masses are added up in: exact, in any order."""


def accepted_counts(p: Tensor, q: Tensor, drafted: Tensor, wanted: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    """How many drafted tokens of each row are accepted before the first that is not.

    Args:
        p, q: float32 [rows, columns], target's and draft's probability of the drafted tokens.
        drafted: int64 [rows, columns]; a row ends at its first negative entry.
        wanted: int64 [rows], how many columns count in each row.
        seed: int64 [rows].
        position: int64 [rows], index in its sequence of the token in column 0.

    Returns:
        int64 [rows].
    """
    columns = torch.arange(drafted.shape[1], device=drafted.device)
    bits = _bits(seed[:, None].expand_as(drafted), position[:, None] + columns, ACCEPT_INDEX)
    coin = torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).to(p.device)
    accepted = (coin * q.double() < p.double()) & (drafted >= 0) & (columns < wanted[:, None])
    return accepted.long().cumprod(dim=1).sum(dim=1)


def draw_residual(p: Tensor, q: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    """Draw from max(p - q, 0), normalised; from p where rounding has left nothing of it.

    Args:
        p, q: float32 [rows, vocab].
        seed, position: int64 [rows].

    Returns:
        int64 [rows]; -1 where p has no mass.
    """
    residual = (p.double() - q.double()).clamp_(min=0)
    residual = torch.where((residual * UNIT).long().sum(dim=1, keepdim=True) > 0, residual, p.double())
    reached = (residual * UNIT).long().cumsum(dim=1)
    total = reached[:, -1]
    bits = _bits(seed, position, RESIDUAL_INDEX)
    chosen = mul_high(bits, total.cpu().numpy().astype(np.uint64)).astype(np.int64)
    ids = torch.searchsorted(reached, torch.from_numpy(chosen).to(p.device)[:, None], right=True).flatten()
    return torch.where(total > 0, ids, NO_TOKEN)


def _bits(seed: Tensor, position: Tensor, index: int) -> np.ndarray:
    """uint64 of the shape of `position`; see `neurogen.kernels.numerics.random_bits`."""
    return random_bits(seed.cpu().numpy(), position.cpu().numpy(), index)  # type: ignore[no-any-return]
