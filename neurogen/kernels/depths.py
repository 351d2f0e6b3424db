"""How far logits lie below the largest of a row, for statistics of the row: scalar functions of both targets.

In bits of probability (*depth*, at the row's temperature) and as whole numbers (*distance*, before it). Sums of both
are of integers, so no order of work changes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.numerics import exact_mul

__all__ = [
    "DEPTH_UNIT",
    "depth_of",
    "distance_units",
    "joined_squares",
    "nearness",
    "split_square",
    "unit_for",
    "weighted_depth",
]

DEEPEST = np.float32(64.0)
"""A token deeper than this below the top, in bits, has the least mass; its depth counts as this."""

DEPTH_UNIT = 2.0**-6  # so that vocab * mass * depth stays below 2**62
UNITS = 25  # bits of the largest distance from the top, where logits are squared
LOW_UNITS = np.int64((1 << 26) - 1)
LOW_SHIFT = np.int64(26)
FARTHEST = 2.0**40  # above all distances of a row, and whole in float64
BIAS = 1023
MANTISSA = np.int64(52)
NEAREST = np.uint32(0xFFFFFFFF)
SIGNLESS = np.uint32(0x7FFFFFFF)


@register_jitable
def depth_of(x: Any, top: Any, scale: Any) -> Any:
    """How far a token lies below the most probable one, in bits: log2 of the ratio of their probabilities; float32."""
    return -exact_mul(np.float32(x - top), scale)


@register_jitable
def weighted_depth(x: Any, top: Any, scale: Any, mass: Any) -> Any:
    """The depth of a token times its mass, int64, in units of a mass over DEPTH_UNIT."""
    depth = min(depth_of(x, top, scale), DEEPEST)
    return np.int64(np.float64(mass) * (np.float64(depth) * DEPTH_UNIT))


@register_jitable
def nearness(depth: Any, mean: Any) -> Any:
    """A uint32 that is the larger, the nearer a depth is to their mean, float64."""
    off = np.float32(np.float64(depth) - mean)
    return np.uint32(NEAREST - np.uint32(off.view(np.uint32) & SIGNLESS))


@register_jitable
def distance_units(x: Any, top: Any, unit: Any) -> Any:
    """How far a finite logit lies below the top, as an integer in units of 1 / `unit`."""
    return np.int64(min((np.float64(top) - np.float64(x)) * unit, FARTHEST))


@register_jitable
def unit_for(reach: Any) -> Any:
    """A power of two that makes a distance of at most `reach`, float64 above 0, an integer below 2**26."""
    exponent = (np.float64(reach).view(np.int64) >> MANTISSA) - np.int64(BIAS)
    return np.int64((np.int64(BIAS + UNITS) - exponent) << MANTISSA).view(np.float64)


@register_jitable
def split_square(off: Any) -> Any:
    """The square of an integer below 2**26 in two parts, whose sums fit 64 bits: the low 26 bits, and the rest."""
    square = off * off
    return square & LOW_UNITS, square >> LOW_SHIFT


@register_jitable
def joined_squares(low: Any, high: Any) -> Any:
    """A sum of squares as float64, from the sums of their parts."""
    return np.float64(high + (low >> LOW_SHIFT)) * np.float64(1 << 26) + np.float64(low & LOW_UNITS)
