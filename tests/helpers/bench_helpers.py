"""Strangers' samplers, offered in a registry of each test's own."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest
import torch

from neurogen import Param, Registry, Sampler, SamplerParams, TruncationSampler, hookimpl
from neurogen.registry.registry import ENTRY_POINT_GROUP


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

    def select(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full((logits.shape[0],), logits.shape[1] - 1)

    def distribution(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.select(logits), logits.shape[1]).float()

    def survivors(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return self.distribution(logits, params) > 0


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The three first samplers, whatever else is installed, in a registry of this test alone."""
    first = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name in ("greedy", "topk", "topp")]
    own = Registry(first, disabled=())
    monkeypatch.setattr("neurogen.registry.registry._default", own)
    return own


def offer(registry: Registry, *classes: type[Sampler]) -> None:
    class Plugin:
        __name__ = "strange_plugin"

        @hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return list(classes)

    registry.register(Plugin(), distribution="neurogen-strange", version="9.9")
