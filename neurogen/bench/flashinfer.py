"""FlashInfer's sampling kernels as a peer on CUDA. Imported only where the package is installed.

They take probabilities, so the softmax is theirs to pay for. Written after FlashInfer's documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neurogen.bench.rule import Rule

__all__ = ["flashinfer_peer"]


def flashinfer_peer(rule: Rule) -> Callable[[Tensor], Tensor] | None:
    """The kernel for a rule; None for the argmax, which FlashInfer leaves to torch."""
    if rule.temperature == 0:
        return None
    import flashinfer.sampling as kernels

    def draw(logits: Tensor) -> Tensor:
        probs = torch.softmax(logits.float() / rule.temperature, -1)
        return _select(kernels, probs, rule)

    return draw


def _select(kernels: Any, probs: Tensor, rule: Rule) -> Tensor:
    if rule.k > 0:
        ids = kernels.top_k_sampling_from_probs(probs, min(rule.k, probs.shape[-1]))
    elif rule.p < 1:
        ids = kernels.top_p_sampling_from_probs(probs, rule.p)
    elif rule.min_p > 0:
        ids = kernels.min_p_sampling_from_probs(probs, rule.min_p)
    else:
        ids = kernels.sampling_from_probs(probs)
    chosen: Tensor = ids
    return chosen.long()
