"""What a plugin promises and what may be required of it: samplers, processors, their parameters, chains and hook specs.

Knows no plugin, no kernel, no model and nothing that calls a sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen._lazy import names_of

if TYPE_CHECKING:
    from neurogen.contract.requirements import Contract

__all__ = ["Contract"]

__getattr__ = names_of(__name__, "requirements")
