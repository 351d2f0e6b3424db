"""What a row is like, on the CPU: entropy, standard deviation, and the row at another temperature.

Every sum is of integers, so a statistic is the same bit for bit on every device and in any order of work; truncations
that depend on one (`likelier`, `above`) are then too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_rows import CHUNK, Row, load_chunk, weigh
from neurogen.kernels.numerics import (
    NEGATIVE_INFINITY,
    exact_mul,
    log2_of,
    mass_of,
    scale_of,
    to_float32,
)

__all__ = ["deviation", "distance_units", "entropy", "finite", "mean_depth", "tempered"]

DEEPEST = np.float32(64.0)
"""A token deeper than this below the top, in bits, has the least mass; its depth counts as this."""

DEPTH_UNIT = 2.0**-6  # so that vocab * mass * depth stays below 2**62
UNITS = 25  # bits of the largest distance from the top, where logits are squared
LOW_UNITS = np.int64((1 << 26) - 1)
LOW_SHIFT = np.int64(26)
FARTHEST = 2.0**40  # above all distances of a row, and whole in float64
BIAS = 1023
MANTISSA = np.int64(52)


@register_jitable
def tempered(row: Any, temperature: Any) -> Any:
    """The same row at another temperature, above 0; what has been listed or weighed is to be done again."""
    return Row(
        row.logits,
        row.maxima,
        row.sums,
        row.ids,
        row.keys,
        row.masses,
        row.scratch,
        row.top,
        scale_of(temperature),
        row.bits,
    )


@register_jitable
def depth_of(x: Any, top: Any, scale: Any) -> Any:
    """How far a token lies below the most probable one, in bits: log2 of the ratio of their probabilities; float32."""
    return -exact_mul(np.float32(x - top), scale)


@register_jitable
def _chunk_depth(chunk: Any, top: Any, scale: Any, bits: Any) -> Any:
    total = np.int64(0)
    for i in range(CHUNK):
        x = to_float32(chunk[i])
        depth = min(depth_of(x, top, scale), DEEPEST)
        total += np.int64(np.float64(mass_of(x, top, scale, bits)) * (np.float64(depth) * DEPTH_UNIT))
    return total


@register_jitable
def mean_depth(row: Any, total: Any) -> Any:
    """The mean of the depths, in bits, float64, weighed by mass; `total` is the row's. Reads the row once."""
    depths = np.int64(0)
    whole = len(row.logits) // CHUNK
    for c in range(whole):
        depths += _chunk_depth(row.logits[c * CHUNK : c * CHUNK + CHUNK], row.top, row.scale, row.bits)
    if whole < len(row.sums):
        load_chunk(row.logits, whole * CHUNK, row.scratch)
        depths += _chunk_depth(row.scratch, row.top, row.scale, row.bits)
    return np.float64(depths) / np.float64(total) / DEPTH_UNIT


@register_jitable
def entropy(row: Any) -> Any:
    """The entropy of the row at its temperature, in bits, float64. Reads the row twice."""
    total = weigh(row)
    return log2_of(np.float64(total)) - np.float64(row.bits) + mean_depth(row, total)


@register_jitable
def finite(row: Any) -> Any:
    """How many logits are above -inf. Reads the row once."""
    count = np.int64(0)
    for i in range(len(row.logits)):
        count += np.int64(to_float32(row.logits[i]) > NEGATIVE_INFINITY)
    return count


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
def deviation(row: Any) -> Any:
    """The standard deviation of the finite logits before temperature, and the unit in which it is measured.

    Returns:
        sigma in units of 1 / unit, float64, and the unit; 0 and 1 where all are equal. Reads the row three times.
    """
    lowest, count = row.top, np.int64(0)
    for i in range(len(row.logits)):
        x = to_float32(row.logits[i])
        if x > NEGATIVE_INFINITY:
            count += 1
            lowest = min(lowest, x)
    reach = np.float64(row.top) - np.float64(lowest)
    if reach <= 0:
        return 0.0, 1.0
    unit = unit_for(reach)
    total = np.int64(0)
    for i in range(len(row.logits)):
        x = to_float32(row.logits[i])
        if x > NEGATIVE_INFINITY:
            total += distance_units(x, row.top, unit)
    mean = total // count
    low, high = np.int64(0), np.int64(0)
    for i in range(len(row.logits)):
        x = to_float32(row.logits[i])
        if x > NEGATIVE_INFINITY:
            off = distance_units(x, row.top, unit) - mean
            low += (off * off) & LOW_UNITS
            high += (off * off) >> LOW_SHIFT
    squares = (high + (low >> LOW_SHIFT)) * np.float64(1 << 26)
    return math.sqrt((squares + np.float64(low & LOW_UNITS)) / np.float64(count)), unit
