"""The sampler `eta` on the CPU."""

from __future__ import annotations

import math
from typing import Any

from neurogen.kernels.cpu import Row, entropy, likelier, truncation
from neurogen.kernels.numerics import two_to

__all__ = ["probs", "sample", "support"]


def keep(row: Row, epsilon: float) -> Any:
    """Tokens with at least min(epsilon, sqrt(epsilon) * exp(-entropy)) (Hewitt et al., 2022)."""
    return likelier(row, min(epsilon, math.sqrt(epsilon) * two_to(-entropy(row))))


sample, probs, support = truncation(keep, "epsilon")
