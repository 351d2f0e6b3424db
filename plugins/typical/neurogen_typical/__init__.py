"""The neurogen sampler `typical`: draw from the tokens whose surprise is near the entropy."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_typical.sampler import Typical

__all__ = ["Typical"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [Typical]
