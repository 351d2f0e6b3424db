"""The neurogen sampler `minp`: draw from tokens that are not much less probable than the best one."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_minp.sampler import MinP

__all__ = ["MinP"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [MinP]
