"""The neurogen sampler `eta`: draw from tokens with at least a probability that follows the entropy."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_eta.sampler import Eta

__all__ = ["Eta"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [Eta]
