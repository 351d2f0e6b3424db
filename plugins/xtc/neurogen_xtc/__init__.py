"""The neurogen sampler `xtc`: leave out the most probable tokens by chance."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_xtc.sampler import XTC

__all__ = ["XTC"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [XTC]
