"""The range of numbers that may be added to logits or multiply them, so that float32 neither overflows nor rounds them
away. Knows no processor.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import field_validator

from neurogen.contract.parameters import SamplerParams

__all__ = ["LARGEST", "LogitParams", "fits"]

LARGEST = 1e30
"""float32 ends at 3.4e38: what lies between leaves room for many such numbers on one logit."""

SMALLEST = 1e-30
"""float32's smallest normal number is 1.2e-38: a logit divided by less than this could overflow."""

REASON = (
    f"its size must be 0 or from {SMALLEST:g} to {LARGEST:g}: with others logits in float32 overflow, or do not change"
)


def fits(value: float) -> bool:
    """Whether logits can take a finite number."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


class LogitParams(SamplerParams):
    """Parameters whose numbers with a fraction meet logits."""

    @field_validator("*")
    @classmethod
    def _fits_logits(cls, value: Any) -> Any:
        if isinstance(value, float) and math.isfinite(value) and not fits(value):
            raise ValueError(REASON)
        return value
