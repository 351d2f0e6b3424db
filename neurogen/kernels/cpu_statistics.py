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
from neurogen.kernels.depths import (
    DEPTH_UNIT,
    distance_units,
    joined_squares,
    split_square,
    unit_for,
    weighted_depth,
)
from neurogen.kernels.numerics import NEGATIVE_INFINITY, log2_of, mass_of, scale_of, to_float32

__all__ = ["deviation", "entropy", "finite", "mean_depth", "tempered"]


@register_jitable
def tempered(row: Any, temperature: Any) -> Any:
    """The same row at another temperature, above 0.

    What a truncation of it keeps can be drawn from, or truncated further, at either: it is weighed again.
    """
    return Row(
        row.logits,
        row.maxima,
        row.sums,
        row.ids,
        row.keys,
        row.masses,
        row.reached,
        row.estimates,
        row.scratch,
        row.weighed,
        row.top,
        scale_of(temperature),
        row.bits,
    )


@register_jitable
def _chunk_depth(chunk: Any, top: Any, scale: Any, bits: Any) -> Any:
    total = np.int64(0)
    for i in range(CHUNK):
        x = to_float32(chunk[i])
        total += weighted_depth(x, top, scale, mass_of(x, top, scale, bits))
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
            own_low, own_high = split_square(distance_units(x, row.top, unit) - mean)
            low += own_low
            high += own_high
    return math.sqrt(joined_squares(low, high) / np.float64(count)), unit
