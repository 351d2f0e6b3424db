"""The neurogen sampler `greedy`: the most probable token, always."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_greedy.sampler import Greedy

__all__ = ["Greedy"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [Greedy]
