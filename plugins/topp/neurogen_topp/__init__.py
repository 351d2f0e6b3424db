"""The neurogen sampler `topp`: draw from the nucleus, the smallest set of tokens that holds the mass p."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_topp.sampler import TopP

__all__ = ["TopP"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [TopP]
