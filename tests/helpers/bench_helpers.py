"""Strangers' samplers, offered in a registry of each test's own."""

from __future__ import annotations

from typing import Any

import torch

from neurogen import Param, Sampler, SamplerParams, TruncationSampler


class MinP(TruncationSampler):
    """A stranger's sampler."""

    name = "minp"
    api_version = 1

    class Params(SamplerParams):
        min_p: float = Param(0.1, ge=0, le=1, description="Least share of the largest.")
        temperature: float = Param(1.0, ge=0, description="As usual.")

    def keep(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        below = logits.double() - logits.double().amax(dim=-1, keepdim=True)
        return (below / params.temperature[:, None]).exp() >= params.min_p[:, None]


class Reverse(Sampler):
    """A sampler that nobody has heard of: always the last token."""

    name = "reverse"
    api_version = 1
    dtypes = frozenset({"float32"})

    class Params(SamplerParams):
        device: int = Param(1, ge=0, description="Its option is one of the command's own.")
        loud: bool = Param(False, description="A flag.")

    def _sample(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full((logits.shape[0],), logits.shape[1] - 1)

    def _probs(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(self._sample(logits), logits.shape[1]).float()

    def _support(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return self._probs(logits, params) > 0
