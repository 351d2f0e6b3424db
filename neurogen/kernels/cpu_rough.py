"""The mass of a row to some millionths on the CPU, in a pass that costs half of an exact one; and estimates of it.

estimate_exponent    from the chunks' maxima and a sample: below which mass tokens hold no more than a given share
skim                 reads the row once: which logits reach a threshold, and the rough mass of all others
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_rows import CHUNK, SAMPLED_CHUNKS, load_chunk, rank_value
from neurogen.kernels.cpu_vectors import (
    LANES,
    add_where,
    at_least,
    everywhere,
    fused,
    greater,
    load,
    scaled_by_power,
    store,
    total_of,
)
from neurogen.kernels.numerics import NEGATIVE_INFINITY, ROUND_TO_INTEGER, ZERO

__all__ = ["ROUGH", "estimate_exponent", "logit_at", "skim"]

# 2**f on [-1/2, 1/2], minimax of degree 4.
EXP2_0 = np.float32(0.9999992847442627)
EXP2_1 = np.float32(0.6931217908859253)
EXP2_2 = np.float32(0.240247443318367)
EXP2_3 = np.float32(0.05591785907745361)
EXP2_4 = np.float32(0.009570102207362652)
LEAST_NORMAL = np.float32(-126.0)  # exponent of the smallest normal float32

SUMMED_CHUNKS = 8
ROUGH = 3e-6 + (SUMMED_CHUNKS * CHUNK // LANES + 6) * 2.0**-24
"""Relative error of a rough mass: of an exponential (found: 2.7e-6), and of so many additions of float32."""

STEPS = 4  # a threshold is estimated to the quarter of a power of two


@register_jitable
def _rough(x: Any, top: Any, scale: Any) -> Any:
    """exp((x - top) / temperature) lane by lane; all arguments are vectors.

    Where t is that of `numerics.exponential`, so the error is of the polynomial alone.
    """
    t = greater((x - top) * scale, everywhere(LEAST_NORMAL))
    shifted = t + everywhere(ROUND_TO_INTEGER)
    f = t - (shifted - everywhere(ROUND_TO_INTEGER))
    p = fused(everywhere(EXP2_4), f, everywhere(EXP2_3))
    p = fused(p, f, everywhere(EXP2_2))
    p = fused(p, f, everywhere(EXP2_1))
    p = fused(p, f, everywhere(EXP2_0))
    return scaled_by_power(p, shifted)


@register_jitable
def skim(row: Any, threshold: Any) -> Any:
    """Note in `row.reached` which logits reach a float32, and return the mass of the others, float64.

    In units of the top token's mass, off by less than ROUGH of itself. Reads the row once. What is left behind the last
    whole chunk is not noted, see `cpu_lists.list_reached`.
    """
    top, scale = everywhere(row.top), everywhere(row.scale)
    whole = len(row.logits) // CHUNK * CHUNK
    total = 0.0
    for first in range(0, whole, SUMMED_CHUNKS * CHUNK):
        own = everywhere(ZERO)
        for start in range(first, min(first + SUMMED_CHUNKS * CHUNK, whole), LANES):
            x = load(row.logits, start)
            bits = at_least(x, threshold)
            row.reached[start // LANES] = bits
            own = add_where(own, _rough(x, top, scale), ~bits)
        total += np.float64(total_of(own))
    if whole < len(row.logits):
        load_chunk(row.logits, whole, row.scratch)
        for start in range(0, CHUNK, LANES):
            x = load(row.scratch, start)
            own = add_where(everywhere(ZERO), _rough(x, top, scale), ~at_least(x, threshold))
            total += np.float64(total_of(own))
    return total


@register_jitable
def logit_at(row: Any, exponent: Any) -> Any:
    """The logit, about, of a token with 2**exponent of the largest mass; -inf below all masses."""
    if exponent <= -row.bits:
        return NEGATIVE_INFINITY
    return np.float32(np.float64(row.top) + np.float64(exponent) / np.float64(row.scale))


@register_jitable
def estimate_exponent(row: Any, share: Any) -> Any:
    """The exponent of the highest mass below which tokens hold at most `share` of the row's, judging by a sample.

    The largest logit of every chunk is known. What else the row holds is estimated from a few chunks.
    """
    maxima, every = _note_estimates(row)
    allowed = share * _mass_below(row, maxima, every, np.float32(2.0))
    low, high = np.int64(-row.bits * STEPS), np.int64(0)
    while high - low > 1:
        middle = (low + high) // 2
        if _mass_below(row, maxima, every, np.float32(2.0 ** (np.float64(middle) / STEPS))) <= allowed:
            low = middle
        else:
            high = middle
    return np.float64(low) / STEPS


@register_jitable
def _note_estimates(row: Any) -> Any:
    """Fill `row.estimates` with rough masses: of the chunks' maxima, of those of the sampled chunks, of these.

    Returns:
        Where the maxima end, filled up to whole vectors, and that every so many chunks one is sampled.
    """
    out, chunks = row.estimates, len(row.maxima)
    maxima = (chunks + LANES - 1) // LANES * LANES
    every = max(1, chunks // SAMPLED_CHUNKS)
    out[chunks : maxima + LANES] = NEGATIVE_INFINITY
    for c in range(chunks):
        out[c] = rank_value(row.maxima[c])
    size = maxima + LANES
    for c in range(every // 2, chunks, every):
        out[maxima + c // every] = rank_value(row.maxima[c])
        load_chunk(row.logits, c * CHUNK, out[size : size + CHUNK])
        size += CHUNK
    top, scale = everywhere(row.top), everywhere(row.scale)
    for start in range(0, size, LANES):
        store(out, start, _rough(load(out, start), top, scale))
    return maxima, every


@register_jitable
def _mass_below(row: Any, maxima: Any, every: Any, limit: Any) -> Any:
    """The mass of the row below a mass, estimated: that of maxima, and of others as often as there are such chunks."""
    sampled = (len(row.maxima) - every // 2 + every - 1) // every
    first = maxima + LANES
    largest = _sum_below(row.estimates[:maxima], limit)
    among = _sum_below(row.estimates[maxima:first], limit)
    rest = _sum_below(row.estimates[first : first + sampled * CHUNK], limit) - among
    return largest + rest * np.float64(len(row.maxima)) / np.float64(sampled)


@register_jitable
def _sum_below(masses: Any, limit: Any) -> Any:
    total = everywhere(ZERO)
    for start in range(0, len(masses), LANES):
        own = load(masses, start)
        total = add_where(total, own, ~at_least(own, limit))
    return np.float64(total_of(total))
