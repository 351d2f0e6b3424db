"""What a row is like, on CUDA: entropy, standard deviation, and the row at another temperature.

Every sum is of integers, so a statistic is the same bit for bit on every device and in any order of work; truncations
that depend on one (`likelier`, `above`) are then too. All threads of a block get the same number.
"""

from __future__ import annotations

import math

import numpy as np

from neurogen.kernels.cuda_block import block_largest, block_sum, device, mass, warp_of, warps
from neurogen.kernels.cuda_rows import PARTS, UNKNOWN, Row, reader
from neurogen.kernels.depths import (
    DEPTH_UNIT,
    distance_units,
    joined_squares,
    split_square,
    unit_for,
    weighted_depth,
)
from neurogen.kernels.numerics import NEGATIVE_INFINITY, key_of, log2_of, scale_of, value_of

__all__ = ["deviation", "entropy", "finite", "mean_depth", "tempered"]


@device
def tempered(row, temperature):  # type: ignore[no-untyped-def]
    """The same row at another temperature, above 0.

    What a truncation of it keeps can be drawn from, or truncated further, at either: it is weighed again.
    """
    scale = scale_of(temperature)
    return Row(row.logits, row.start, row.vocab, row.head, row.top, scale, row.bits, row.space, UNKNOWN)


@reader
def _read_depths(row, state, x, i):  # type: ignore[no-untyped-def]
    total, depths = state
    own = mass(x, row.top, row.scale, row.bits)
    return total + own, depths + weighted_depth(x, row.top, row.scale, own)


@device
def mean_depth(row):  # type: ignore[no-untyped-def]
    """The mean of the depths, in bits, float64, weighed by mass; and the mass of the row. Reads the row once."""
    state = (np.int64(0), np.int64(0))
    part = warp_of()
    while part < PARTS:
        state = _read_depths(row, part, state)
        part += warps()
    total, depths = state
    total = block_sum(row.space.sums, total)
    depths = block_sum(row.space.sums, depths)
    return np.float64(depths) / np.float64(total) / DEPTH_UNIT, total


@device
def entropy(row):  # type: ignore[no-untyped-def]
    """The entropy of the row at its temperature, in bits, float64. Reads the row once."""
    mean, total = mean_depth(row)
    return log2_of(np.float64(total)) - np.float64(row.bits) + mean


@reader
def _read_finite(row, state, x, i):  # type: ignore[no-untyped-def]
    """How many logits are above -inf, and the lowest of them."""
    count, lowest = state
    if x > NEGATIVE_INFINITY:
        count, lowest = np.int64(count + 1), min(lowest, x)
    return count, lowest


@device
def _finite(row):  # type: ignore[no-untyped-def]
    state = (np.int64(0), row.top)
    part = warp_of()
    while part < PARTS:
        state = _read_finite(row, part, state)
        part += warps()
    count, lowest = state
    below = block_largest(row.space.sums, np.int64(key_of(row.top)) - np.int64(key_of(lowest)))
    return block_sum(row.space.sums, count), value_of(np.uint32(np.int64(key_of(row.top)) - below))


@device
def finite(row):  # type: ignore[no-untyped-def]
    """How many logits are above -inf. Reads the row once."""
    count, _ = _finite(row)
    return count


@reader
def _read_distances(row, state, x, i):  # type: ignore[no-untyped-def]
    unit, total = state
    return unit, total + (distance_units(x, row.top, unit) if x > NEGATIVE_INFINITY else np.int64(0))


@reader
def _read_squares(row, state, x, i):  # type: ignore[no-untyped-def]
    unit, mean, low, high = state
    if x > NEGATIVE_INFINITY:
        own_low, own_high = split_square(distance_units(x, row.top, unit) - mean)
        low, high = low + own_low, high + own_high
    return unit, mean, low, high


@device
def deviation(row):  # type: ignore[no-untyped-def]
    """The standard deviation of the finite logits before temperature, and the unit in which it is measured.

    Returns:
        sigma in units of 1 / unit, float64, and the unit; 0 and 1 where all are equal. Reads the row three times.
    """
    sums = row.space.sums
    count, lowest = _finite(row)
    reach = np.float64(row.top) - np.float64(lowest)
    if reach <= 0:
        return 0.0, 1.0
    unit = unit_for(reach)
    total, low, high = np.int64(0), np.int64(0), np.int64(0)
    part = warp_of()
    while part < PARTS:
        _, total = _read_distances(row, part, (unit, total))
        part += warps()
    mean = block_sum(sums, total) // count
    part = warp_of()
    while part < PARTS:
        _, _, low, high = _read_squares(row, part, (unit, mean, low, high))
        part += warps()
    low = block_sum(sums, low)
    high = block_sum(sums, high)
    return math.sqrt(joined_squares(low, high) / np.float64(count)), unit
