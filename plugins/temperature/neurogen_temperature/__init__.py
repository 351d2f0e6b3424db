"""The neurogen sampler `temperature`: draw from all tokens by probability."""

from __future__ import annotations

from neurogen import Sampler, hookimpl
from neurogen_temperature.sampler import Temperature

__all__ = ["Temperature"]


@hookimpl
def neurogen_samplers() -> list[type[Sampler]]:
    """The samplers of this package."""
    return [Temperature]
