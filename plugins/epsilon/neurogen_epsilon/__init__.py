"""The neurogen sampler `epsilon`: draw from tokens with at least a probability of epsilon."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_epsilon.sampler import Epsilon

__all__ = ["Epsilon"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [Epsilon]
