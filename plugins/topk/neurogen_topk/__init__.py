"""The neurogen sampler `topk`: draw from the k most probable tokens."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_topk.sampler import TopK

__all__ = ["TopK"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [TopK]
