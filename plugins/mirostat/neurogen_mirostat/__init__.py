"""The neurogen sampler `mirostat`: keep the surprise of what is drawn near a target."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_mirostat.sampler import Mirostat

__all__ = ["Mirostat"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [Mirostat]
