"""The neurogen sampler `dynatemp`: draw at a temperature that follows the entropy."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_dynatemp.sampler import DynaTemp

__all__ = ["DynaTemp"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [DynaTemp]
