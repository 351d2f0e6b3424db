"""Truncations of a row on the CPU: which tokens a sampler keeps. The definitions of plugins are made of these.

Every truncation here keeps a prefix in the order of tokens (logit descending, then id ascending). It lists candidates
that hold the prefix for certain, and finds where it ends among them by their integer keys and masses. What it returns
is `Kept`: how many tokens, now listed in `row.ids` and `row.masses` in order of their ids; or EVERYTHING.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_lists import collect, list_reached, weigh_kept, weigh_listed
from neurogen.kernels.cpu_rough import ROUGH, estimate_exponent, logit_at, skim
from neurogen.kernels.cpu_rows import (
    CHUNK,
    EVERYTHING,
    SAMPLED_CHUNKS,
    Kept,
    Row,
    load_chunk,
    mass_at,
    rank_value,
    weigh,
)
from neurogen.kernels.cpu_select import select
from neurogen.kernels.numerics import (
    NEGATIVE_INFINITY,
    key_of,
    mass_of,
    mul_high,
    nucleus_mass,
    to_float32,
    value_of,
)

__all__ = ["Row", "draw", "everything", "heavier", "largest", "mark", "normalise", "nucleus"]

SAFETY = 0.75  # leave so much of what may lie below a threshold there by estimate, for the sample may mislead
LOWER = 2  # halvings that a threshold is lowered by where it was too high


@register_jitable
def everything(row: Any) -> Any:
    """Keep all tokens above -inf."""
    return EVERYTHING


@register_jitable
def largest(row: Any, k: Any) -> Any:
    """Keep the k largest logits, the lower id first among equals; k <= 0 keeps all.

    The k-th largest of the chunks' maxima is a lower bound of the k-th largest logit, and a sharp one for a k far below
    their number: then hardly more than k chunks are read. For a larger k the bound is estimated from a sample of the
    row.
    """
    if k <= 0 or k >= len(row.logits):
        return EVERYTHING
    if 2 * k <= len(row.maxima):
        rank, _ = select(row.maxima, row.masses, len(row.maxima), np.int64(k), True)
        threshold = rank_value(rank)
    else:
        threshold = _estimated_kth(row, k)
    count = collect(row, threshold, k)
    if count < k:
        count = collect(row, NEGATIVE_INFINITY, k)
    return _cut(row, count, np.int64(k), True)


@register_jitable
def nucleus(row: Any, p: Any, kept: Any = None) -> Any:
    """Keep the smallest prefix whose mass reaches p of the row's; p >= 1 keeps all.

    After another truncation, `nucleus(row, p, largest(row, k))`, the prefix of what that kept, whose mass is then the
    whole; that is among what is listed, so the row is not read.

    Else reads the row once, for the rough mass of what lies below a threshold and a list of what does not. The
    threshold is estimated from a sample of the row; the masses listed tell whether it was low enough, and if not it is
    lowered. What is listed is weighed exactly, so the mass of the row is known to some millionths of what was not.
    Rarely, that leaves open where the nucleus ends: then the row is read once more for its exact mass.
    """
    if kept is None:
        return _nucleus_of_row(row, p)
    return _nucleus_of(row, p, kept)


@register_jitable
def _nucleus_of(row: Any, p: Any, kept: Any) -> Any:
    """The nucleus of what another truncation keeps."""
    if p >= 1:
        return kept
    if kept == EVERYTHING:
        return _nucleus_of_row(row, p)
    return _cut(row, kept.count, nucleus_mass(p, weigh_kept(row, kept.count)), False)


@register_jitable
def _nucleus_of_row(row: Any, p: Any) -> Any:
    """The nucleus of a whole row."""
    if p >= 1:
        return EVERYTHING
    exponent = estimate_exponent(row, SAFETY * (1.0 - p))
    threshold = logit_at(row, exponent)
    rest = skim(row, threshold)
    count = list_reached(row, threshold)
    listed = weigh_listed(row, count)
    low, high = _bounds_of_mass(row, rest, count, listed)
    wanted = nucleus_mass(p, high)
    while listed < wanted and threshold > NEGATIVE_INFINITY:
        exponent -= LOWER
        threshold = logit_at(row, exponent)
        count = collect(row, threshold, len(row.logits))
        listed = weigh_listed(row, count)
    if listed >= wanted:
        cut, above = select(row.keys, row.masses, count, wanted, False)
        if _ends_alike(row, cut, above, nucleus_mass(p, low), wanted):
            return _keep(row, count, cut, wanted - above, False)
    wanted = nucleus_mass(p, weigh(row))
    if listed < wanted:
        count = collect(row, NEGATIVE_INFINITY, len(row.logits))
        weigh_listed(row, count)
    return _cut(row, count, wanted, False)


@register_jitable
def heavier(row: Any, share: Any) -> Any:
    """Keep the tokens with at least `share` of the most probable token's probability; share <= 0 keeps all.

    A mass never falls with the logit, so the lowest key that is heavy enough is found without the row.
    """
    unit = np.int64(1) << row.bits
    wanted = nucleus_mass(share, unit)
    if share <= 0 or wanted <= 1:
        return EVERYTHING
    return heavy_enough(row, wanted)


@register_jitable
def heavy_enough(row: Any, wanted: Any) -> Any:
    """Keep the tokens with at least this mass, which the most probable one has."""
    low, high = np.int64(key_of(NEGATIVE_INFINITY)), np.int64(key_of(row.top))
    while high - low > 1:
        middle = (low + high) >> np.int64(1)
        if mass_of(value_of(np.uint32(middle)), row.top, row.scale, row.bits) >= wanted:
            high = middle
        else:
            low = middle
    return cut_at(row, np.uint32(high))


@register_jitable
def cut_at(row: Any, lowest: Any) -> Any:
    """Keep the tokens whose key is at least `lowest`, at most the top's."""
    count = collect(row, value_of(lowest), len(row.logits))
    kept = 0
    for i in range(count):
        if row.keys[i] >= lowest:
            row.ids[kept] = row.ids[i]
            row.keys[kept] = row.keys[i]
            kept += 1
    weigh_listed(row, kept)
    return Kept(np.int64(kept))


# Where a prefix ends.


@register_jitable
def _cut(row: Any, count: Any, wanted: Any, counted: Any) -> Any:
    """Keep of the tokens listed the smallest prefix that holds `wanted` tokens (`counted`) or `wanted` mass."""
    cut, above = select(row.keys, row.masses, count, wanted, counted)
    return _keep(row, count, cut, wanted - above, counted)


@register_jitable
def _keep(row: Any, count: Any, cut: Any, left: Any, counted: Any) -> Any:
    """Keep of the tokens listed those above the key `cut`, and of those at it the first that hold `left`."""
    kept = np.int64(0)
    for i in range(count):  # without a branch, which could not be predicted
        key, mass = row.keys[i], row.masses[i]
        tie = np.int64(key == cut)
        row.ids[kept], row.keys[kept], row.masses[kept] = row.ids[i], key, mass
        kept += np.int64(key > cut) | (tie & np.int64(left > 0))
        left -= tie * (np.int64(1) if counted else mass)
    if counted:
        weigh_listed(row, kept)
    return Kept(kept)


@register_jitable
def _bounds_of_mass(row: Any, rest: Any, count: Any, listed: Any) -> Any:
    """Between what the mass of a row lies: that of `count` tokens listed, and of the `rest`, known roughly."""
    unit = np.float64(np.int64(1) << row.bits)
    rounding = len(row.logits) - count  # a unit for each: half of one by rounding, or one given to a token without any
    low = np.int64(rest * (1.0 - ROUGH) * unit) - rounding
    return listed + max(low, np.int64(0)), listed + np.int64(rest * (1.0 + ROUGH) * unit) + rounding


@register_jitable
def _ends_alike(row: Any, cut: Any, above: Any, low: Any, high: Any) -> Any:
    """Whether prefixes that reach `low` and `high` end with the same token, that for `high` at the key `cut`."""
    unit = mass_of(value_of(cut), row.top, row.scale, row.bits)
    return low > above and (low - above - 1) // unit == (high - above - 1) // unit


@register_jitable
def _sample(row: Any) -> Any:
    """Note the keys of the logits of a few chunks spread over the row; return how many, and their share of the row."""
    every = max(1, len(row.maxima) // SAMPLED_CHUNKS)
    size = 0
    for c in range(every // 2, len(row.maxima), every):
        load_chunk(row.logits, c * CHUNK, row.scratch)
        for i in range(CHUNK):
            row.keys[size + i] = key_of(row.scratch[i])
        size += CHUNK
    return size, np.float64(size) / np.float64(len(row.maxima) * CHUNK)


@register_jitable
def _estimated_kth(row: Any, k: Any) -> Any:
    """A logit that more than k others reach, judging by a sample; -inf where that is too small."""
    size, share = _sample(row)
    rank = np.int64(np.float64(k) / SAFETY * share) + 1
    if rank >= size:
        return NEGATIVE_INFINITY
    key, _ = select(row.keys, row.masses, size, rank, True)
    return value_of(key)


# From what is kept to a token, probabilities, or a support.


@register_jitable
def draw(row: Any, kept: Any, random: Any) -> Any:
    """Inverse CDF in id order with one random number: the first id whose cumulative mass exceeds random / 2**64.

    Where everything is kept, reads the row once for the masses of chunks, and one chunk of it again.
    """
    if kept == EVERYTHING:
        target = np.int64(mul_high(random, np.uint64(weigh(row))))
        c = 0
        while target >= row.sums[c]:
            target -= row.sums[c]
            c += 1
        i = c * CHUNK
        target -= mass_at(row, i)
        while target >= 0:
            i += 1
            target -= mass_at(row, i)
        return i
    target = np.int64(mul_high(random, np.uint64(weigh_kept(row, kept.count))))
    i = 0
    target -= row.masses[0]
    while target >= 0:
        i += 1
        target -= row.masses[i]
    return np.int64(row.ids[i])


@register_jitable
def normalise(row: Any, kept: Any, out: Any) -> None:
    """Write a row's probabilities as float32. Where everything is kept, reads the row twice."""
    if kept == EVERYTHING:
        total = np.float64(weigh(row))
        for i in range(len(out)):
            out[i] = np.float32(np.float64(mass_at(row, i)) / total)
        return
    total = np.float64(weigh_kept(row, kept.count))
    out[:] = 0
    for i in range(kept.count):
        out[row.ids[i]] = np.float32(np.float64(row.masses[i]) / total)


@register_jitable
def mark(row: Any, kept: Any, out: Any) -> None:
    """Write which tokens of a row can be drawn."""
    if kept == EVERYTHING:
        for i in range(len(out)):
            out[i] = to_float32(row.logits[i]) > NEGATIVE_INFINITY
        return
    out[:] = False
    weigh_kept(row, kept.count)
    for i in range(kept.count):
        out[row.ids[i]] = row.masses[i] > 0
