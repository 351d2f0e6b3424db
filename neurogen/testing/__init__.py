"""Checks of an installation and of a sampler.

recorded       100,000 tokens that every device must choose
conformance    checks a sampler against its contract; `SamplerConformance` is the same for pytest
simulator      runs CUDA kernels on the CPU, thread by thread
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurogen.testing.conformance.suite import SamplerConformance

__all__ = ["SamplerConformance"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: this package itself stays light."""
    if name == "SamplerConformance":
        from neurogen.testing.conformance.suite import SamplerConformance

        return SamplerConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
