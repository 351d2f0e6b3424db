"""The neurogen sampler `topnsigma`: draw from logits within n standard deviations of the largest."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_topnsigma.sampler import TopNSigma

__all__ = ["TopNSigma"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [TopNSigma]
