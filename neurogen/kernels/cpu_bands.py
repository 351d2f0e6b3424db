"""Truncations by a statistic of the row, and those that keep a band of the order of tokens, on the CPU.

`likelier` and `above` keep a prefix whose end follows from the row's mass or deviation, `typical` tokens whose surprise
is near the entropy; `spared` removes the most probable ones. What they return is what `cpu_cuts` returns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_cuts import cut_at, heavy_enough, largest
from neurogen.kernels.cpu_lists import collect, weigh_kept, weigh_listed
from neurogen.kernels.cpu_rows import EVERYTHING, Kept, weigh
from neurogen.kernels.cpu_statistics import deviation, mean_depth
from neurogen.kernels.depths import depth_of, distance_units, nearness
from neurogen.kernels.numerics import NEGATIVE_INFINITY, key_of, nucleus_mass, to_float32, value_of

__all__ = ["above", "likelier", "mix", "spared", "typical"]

FARTHEST = np.uint32(0xFFFFFFFF)


@register_jitable
def likelier(row: Any, probability: Any) -> Any:
    """Keep the tokens with at least this probability, and the most probable one in any case; <= 0 keeps all.

    Reads the row once for its mass, and the chunks that hold a token that is likely enough.
    """
    if probability <= 0:
        return EVERYTHING
    wanted = nucleus_mass(probability, weigh(row))
    if wanted > np.int64(1) << row.bits:
        return largest(row, 1)
    return EVERYTHING if wanted <= 1 else heavy_enough(row, wanted)


@register_jitable
def above(row: Any, deviations: Any) -> Any:
    """Keep the logits at most so many standard deviations of the finite ones below the largest; <= 0 keeps all.

    Measured before the temperature. Reads the row three times, and the chunks that hold what is kept.
    """
    if deviations <= 0:
        return EVERYTHING
    sigma, unit = deviation(row)
    limit = np.int64(min(deviations * sigma, 2.0**39))
    low, high = np.int64(key_of(NEGATIVE_INFINITY)), np.int64(key_of(row.top))
    while high - low > 1:
        middle = (low + high) >> np.int64(1)
        if distance_units(value_of(np.uint32(middle)), row.top, unit) <= limit:
            high = middle
        else:
            low = middle
    return cut_at(row, np.uint32(high))


@register_jitable
def typical(row: Any, p: Any) -> Any:
    """Keep the tokens whose surprise is nearest to the entropy until their mass reaches p; p >= 1 keeps all.

    Of tokens equally near the larger logit comes first, then the lower id. The surprise differs from the entropy by
    what a token's depth below the top differs from the mean depth: no logarithm is needed. Reads the row three times.
    """
    if p >= 1:
        return EVERYTHING
    total = weigh(row)
    mean = mean_depth(row, total)
    count = collect(row, NEGATIVE_INFINITY, len(row.logits))
    weigh_listed(row, count)
    for i in range(count):
        row.keys[i] = nearness(depth_of(value_of(row.keys[i]), row.top, row.scale), mean)
    wanted = nucleus_mass(p, total)
    low, high = np.int64(0), np.int64(FARTHEST)
    while low < high:  # the largest key that tokens which hold enough have at least
        middle = (low + high + 1) >> np.int64(1)
        if _mass_from(row, count, middle) >= wanted:
            low = middle
        else:
            high = middle - 1
    left = _drop_ties(row, count, low, mean, wanted - _mass_from(row, count, low + 1), True)
    _drop_ties(row, count, low, mean, left, False)
    return _nearest(row, count, low)


@register_jitable
def _mass_from(row: Any, count: Any, key: Any) -> Any:
    total = np.int64(0)
    for i in range(count):
        total += row.masses[i] if np.int64(row.keys[i]) >= key else np.int64(0)
    return total


@register_jitable
def _drop_ties(row: Any, count: Any, key: Any, mean: Any, left: Any, upper: Any) -> Any:
    """Of the tokens with this key on one side of the mean, drop those behind what is `left`; return what then is."""
    for i in range(count):
        if np.int64(row.keys[i]) == key:
            depth = np.float64(depth_of(to_float32(row.logits[row.ids[i]]), row.top, row.scale))
            if (depth <= mean) == upper:
                if left <= 0:
                    row.keys[i] = np.uint32(0)
                left -= row.masses[i]
    return left


@register_jitable
def _nearest(row: Any, count: Any, key: Any) -> Any:
    """Keep of the tokens listed those with at least this key."""
    kept = 0
    for i in range(count):
        if np.int64(row.keys[i]) >= key and row.masses[i] > 0:
            row.ids[kept] = row.ids[i]
            row.masses[kept] = row.masses[i]
            kept += 1
    return Kept(np.int64(kept))


@register_jitable
def mix(row: Any, kept: Any, share: Any, out: Any) -> None:
    """Turn probabilities of everything into their mixture with those of what is kept, which has this share."""
    if kept == EVERYTHING:
        return
    total = np.float64(weigh_kept(row, kept.count))
    for i in range(len(out)):
        out[i] = np.float32(np.float64(out[i]) * (1.0 - share))
    for i in range(kept.count):
        own = share * np.float64(row.masses[i]) / total
        out[row.ids[i]] = np.float32(np.float64(out[row.ids[i]]) + own)


@register_jitable
def spared(row: Any, threshold: Any) -> Any:
    """Remove all tokens with at least this probability but the least probable of them (of equals the highest id).

    Where fewer than two have it, nothing is removed. Reads the row once for its mass, and lists all of it.
    """
    total = weigh(row)
    wanted = nucleus_mass(threshold, total)
    if threshold <= 0 or threshold > 1 or wanted > np.int64(1) << row.bits:
        return EVERYTHING
    count = collect(row, NEGATIVE_INFINITY, len(row.logits))
    weigh_listed(row, count)
    likely, last = 0, -1
    for i in range(count):
        if row.masses[i] >= wanted:
            likely += 1
            if last < 0 or row.keys[i] <= row.keys[last]:
                last = i
    if likely < 2:
        return EVERYTHING
    kept = 0
    for i in range(count):
        if row.masses[i] < wanted or i == last:
            row.ids[kept] = row.ids[i]
            row.keys[kept] = row.keys[i]
            row.masses[kept] = row.masses[i]
            kept += 1
    return Kept(np.int64(kept))
