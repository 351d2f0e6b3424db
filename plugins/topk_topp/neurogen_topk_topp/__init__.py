"""The neurogen sampler `topk+topp`: draw from the nucleus of the k most probable tokens."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_topk_topp.sampler import TopKTopP

__all__ = ["TopKTopP"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [TopKTopP]
