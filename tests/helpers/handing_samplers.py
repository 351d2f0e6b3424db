"""Right samplers that come to the kernels below a truncation in ways of their own: what these get is not what came in.

Each is the same distribution on the CPU and on CUDA. `Astray` is the wrong one: its module for CUDA hands on something
else than that for the CPU.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import neurogen
from neurogen import Param, RowParams, Sampler, SamplerParams


class Handing(Sampler):
    """Draws from the logits by the kernels of plain temperature sampling."""

    name = "handing"
    api_version = 1
    backends = {"cpu": "neurogen.kernels.temperature.cpu", "cuda": "neurogen.kernels.temperature.cuda"}

    class Params(SamplerParams):
        bend: float = Param(0.3, ge=0, le=1, description="How far the logits are bent.")
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")

    def changed(self, logits: Tensor, params: RowParams) -> tuple[Tensor, RowParams]:
        return logits, params

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: Any) -> Tensor:
        logits, params = self.changed(logits, params)
        return super()._sample(logits, seed, position, params, *state)

    def _probs(self, logits: Tensor, params: RowParams) -> Tensor:
        return super()._probs(*self.changed(logits, params))

    def _support(self, logits: Tensor, params: RowParams) -> Tensor:
        return super()._support(*self.changed(logits, params))


class ChangedLogits(Handing):
    """Bends the logits towards the largest (quadratic), but at temperature 0."""

    def changed(self, logits: Tensor, params: RowParams) -> tuple[Tensor, RowParams]:
        x = logits.float()
        depth = x.amax(-1, keepdim=True) - x
        bent = x - params.bend.float()[:, None] * depth.square()
        return torch.where(x.isfinite() & (params.temperature > 0)[:, None], bent, x), params


class ChangedParams(Handing):
    """Has a temperature that follows from another parameter."""

    def changed(self, logits: Tensor, params: RowParams) -> tuple[Tensor, RowParams]:
        return logits, RowParams(temperature=params.temperature * (1 + params.bend))


class ColumnsInHalf(Handing):
    """Hands on a copy in bfloat16 that lies by columns, and parameters that are not contiguous."""

    dtypes = frozenset({"bfloat16"})

    def changed(self, logits: Tensor, params: RowParams) -> tuple[Tensor, RowParams]:
        pairs = torch.stack([params.temperature, params.bend], -1)
        return logits.t().contiguous().t(), RowParams(temperature=pairs[:, 0])


class RowByRow(Handing):
    """Calls the kernel for some rows, then for the others: two launches a call, for a part of the batch each."""

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: Any) -> Tensor:
        ids = torch.empty_like(seed)
        for start in (0, 1):
            rows = slice(start, None, 2)
            if len(seed[rows]):
                own = RowParams(temperature=params.temperature[rows])
                ids[rows] = super()._sample(logits[rows], seed[rows].contiguous(), position[rows].contiguous(), own)
        return ids


class TwoDraws(Handing):
    """Draws a first token, and then one that is no better: the second launch depends on what the first gave."""

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: Any) -> Tensor:
        first = super()._sample(logits, seed, position, params)
        bound = logits.gather(1, first.clamp(min=0)[:, None])
        return super()._sample(
            logits.masked_fill((logits > bound) & logits.isfinite(), -torch.inf), seed, position, params
        )


class Astray(Handing):
    """Its module for CUDA draws at twice the temperature."""

    backends = {"cpu": "neurogen.kernels.temperature.cpu", "cuda": "astray_cuda"}


class Misnamed(Handing):
    """Its module for CUDA has a mistake."""

    backends = {"cpu": "neurogen.kernels.temperature.cpu", "cuda": "misnamed_cuda"}


def _module(name: str, warmed: Any) -> None:
    """A module for CUDA that hands on other parameters."""
    module: Any = ModuleType(name)

    def calls() -> Any:
        from neurogen.kernels.temperature import cuda

        return cuda

    module.sample = lambda logits, seed, position, params: calls().sample(logits, seed, position, warmed(params))
    module.probs = lambda logits, params: calls().probs(logits, warmed(params))
    module.support = lambda logits, params: calls().support(logits, warmed(params))
    sys.modules[name] = module


_module("astray_cuda", lambda params: neurogen.RowParams(temperature=params.temperature * 2))
_module("misnamed_cuda", lambda params: neurogen.RowParams(temperature=params.temprature))

RIGHT = (ChangedLogits, ChangedParams, ColumnsInHalf, RowByRow, TwoDraws)
