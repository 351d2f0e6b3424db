"""Truncations of a row on the CPU: which tokens a sampler keeps. The definitions of plugins are made of these.

Every truncation here keeps a prefix in the order of tokens (logit descending, then id ascending). It lists candidates
that hold the prefix for certain, and finds where it ends among them by their integer keys and masses. What it returns
is how many tokens it kept, now listed in `row.ids` and `row.masses` in order of their ids; or EVERYTHING.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_rows import (
    CHUNK,
    EVERYTHING,
    ROUGH,
    ROUGH_SUM,
    Row,
    collect,
    load_chunk,
    mass_at,
    rank_value,
    rough_mass,
    sum_of,
    weigh,
    weigh_listed,
    weigh_roughly,
)
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

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
SAMPLED_CHUNKS = 16
SAFETY = 0.85  # leave so much of what may lie below a threshold there by estimate, for the sample may mislead
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
        rank, _ = _radix(row.maxima, row.masses, len(row.maxima), np.int64(k), True)
        threshold = rank_value(rank)
    else:
        threshold = _estimated_kth(row, k)
    count = collect(row, threshold, k)
    if count < k:
        count = collect(row, NEGATIVE_INFINITY, k)
    return _cut(row, count, np.int64(k), True)


@register_jitable
def nucleus(row: Any, p: Any, kept: Any = EVERYTHING) -> Any:
    """Keep the smallest prefix whose mass reaches p of the row's; p >= 1 keeps all.

    After another truncation, `nucleus(row, p, largest(row, k))`, the prefix of what that kept, whose mass is then the
    whole; that is among what is listed, so the row is not read.

    Else reads the row once for its rough mass, and then the chunks that hold a logit above a threshold. That is
    estimated from a sample of the row; the masses listed tell whether it was low enough, and if not it is lowered. What
    is listed is weighed exactly, so the mass of the row is known to some millionths of what is not. Rarely, that leaves
    open where the nucleus ends: then the row is read once more for its exact mass.
    """
    if p >= 1:
        return kept
    if kept != EVERYTHING:
        return _cut(row, kept, nucleus_mass(p, sum_of(row.masses[:kept])), False)
    rough = weigh_roughly(row)
    exponent = _estimated_exponent(row, SAFETY * (1.0 - p) * rough)
    while True:
        count = collect(row, _logit_at(row, exponent), len(row.logits))
        listed = weigh_listed(row, count)
        low, high = _bounds_of_mass(row, rough, count, listed)
        wanted = nucleus_mass(p, high)
        if listed >= wanted:
            cut, above = _radix(row.keys, row.masses, count, wanted, False)
            if _ends_alike(row, cut, above, nucleus_mass(p, low), wanted):
                return _keep(row, count, cut, wanted - above, False)
            break
        if exponent <= -row.bits:
            break
        exponent -= LOWER
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
    return kept


# Where a prefix ends.


@register_jitable
def _radix(keys: Any, weights: Any, count: Any, wanted: Any, counted: Any) -> Any:
    """The key at which a prefix in descending order of keys reaches `wanted`, and what lies above that key.

    A radix selection: a histogram of the leading digit shows in which digit the prefix ends, then only keys with that
    digit count for the next one. Digits are of the distance from the lowest key, so that the first tells keys apart
    however close they are. All of it in integers: no order of work changes the result.

    Args:
        keys: uint32 [>= count].
        weights: int64 [>= count], not read where tokens are `counted`.
        wanted: at least 1, at most the sum of all weights.
        counted: every weight is 1.
    """
    least, most = _bounds(keys[:count])
    shift = 0
    while (most - least) >> np.uint32(shift + DIGIT_BITS) != 0 and shift + DIGIT_BITS < 32:
        shift += 1
    histogram = np.empty(DIGITS, np.int64)
    prefix = np.uint32(0)
    fixed = np.uint64(32)  # the bits above are those of the prefix
    above = np.int64(0)
    while True:
        histogram[:] = 0
        for i in range(count):
            distance = np.uint32(keys[i] - least)
            if np.uint64(np.uint32(distance ^ prefix)) >> fixed == 0:
                histogram[(distance >> np.uint32(shift)) & np.uint32(DIGITS - 1)] += 1 if counted else weights[i]
        digit = DIGITS - 1
        while above + histogram[digit] < wanted:
            above += histogram[digit]
            digit -= 1
        prefix |= np.uint32(np.uint32(digit) << np.uint32(shift))
        if shift == 0:
            return np.uint32(least + prefix), above
        fixed = np.uint64(shift)
        shift = max(0, shift - DIGIT_BITS)


@register_jitable
def _bounds(keys: Any) -> Any:
    least, most = keys[0], keys[0]
    for i in range(len(keys)):
        least = min(least, keys[i])
        most = max(most, keys[i])
    return least, most


@register_jitable
def _cut(row: Any, count: Any, wanted: Any, counted: Any) -> Any:
    """Keep of the tokens listed the smallest prefix that holds `wanted` tokens (`counted`) or `wanted` mass."""
    cut, above = _radix(row.keys, row.masses, count, wanted, counted)
    return _keep(row, count, cut, wanted - above, counted)


@register_jitable
def _keep(row: Any, count: Any, cut: Any, left: Any, counted: Any) -> Any:
    """Keep of the tokens listed those above the key `cut`, and of those at it the first that hold `left`."""
    kept = 0
    for i in range(count):
        key = row.keys[i]
        keep = key > cut or (key == cut and left > 0)
        if key == cut:
            left -= 1 if counted else row.masses[i]
        if keep:
            row.ids[kept] = row.ids[i]
            row.keys[kept] = key
            row.masses[kept] = row.masses[i]
            kept += 1
    if counted:
        weigh_listed(row, kept)
    return kept


@register_jitable
def _bounds_of_mass(row: Any, rough: Any, count: Any, listed: Any) -> Any:
    """Between what the mass of a row lies, of which the tokens listed are known to hold `listed`."""
    unit = np.float64(np.int64(1) << row.bits)
    of_listed = 0.0
    for i in range(count):
        of_listed += np.float64(rough_mass(value_of(row.keys[i]), row.top, row.scale))
    rest = max(rough - of_listed, 0.0)
    slack = ROUGH * rest + ROUGH_SUM * rough
    rounding = len(row.logits)  # a unit for every token: half of one from rounding, or one given to a token without any
    low = np.int64(max(rest - slack, 0.0) * unit) - rounding
    return listed + max(low, np.int64(0)), listed + np.int64((rest + slack) * unit) + rounding


@register_jitable
def _ends_alike(row: Any, cut: Any, above: Any, low: Any, high: Any) -> Any:
    """Whether prefixes that reach `low` and `high` end with the same token, that for `high` at the key `cut`."""
    unit = mass_of(value_of(cut), row.top, row.scale, row.bits)
    return low > above and (low - above - 1) // unit == (high - above - 1) // unit


@register_jitable
def _logit_at(row: Any, exponent: Any) -> Any:
    """The logit, about, of a token with 2**exponent of the largest mass; -inf below all masses."""
    if exponent <= -row.bits:
        return NEGATIVE_INFINITY
    return np.float32(np.float64(row.top) + np.float64(exponent) / np.float64(row.scale))


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
    key, _ = _radix(row.keys, row.masses, size, rank, True)
    return value_of(key)


@register_jitable
def _estimated_exponent(row: Any, below: Any) -> Any:
    """The highest power of two under which tokens hold at most `below`, judging by a sample.

    Both in units of the top token's mass.
    """
    size, share = _sample(row)
    weigh_listed(row, size)
    allowed = np.int64(below * share * np.float64(np.int64(1) << row.bits))
    low, high = np.int64(0), row.bits
    while high - low > 1:
        middle = (low + high) // 2
        if _sum_below(row.masses[:size], np.int64(1) << middle) <= allowed:
            low = middle
        else:
            high = middle
    return low - row.bits


@register_jitable
def _sum_below(masses: Any, limit: Any) -> Any:
    total = np.int64(0)
    for i in range(len(masses)):
        total += masses[i] if masses[i] < limit else np.int64(0)
    return total


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
    target = np.int64(mul_high(random, np.uint64(sum_of(row.masses[:kept]))))
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
    total = np.float64(sum_of(row.masses[:kept]))
    out[:] = 0
    for i in range(kept):
        out[row.ids[i]] = np.float32(np.float64(row.masses[i]) / total)


@register_jitable
def mark(row: Any, kept: Any, out: Any) -> None:
    """Write which tokens of a row can be drawn."""
    if kept == EVERYTHING:
        for i in range(len(out)):
            out[i] = to_float32(row.logits[i]) > NEGATIVE_INFINITY
        return
    out[:] = False
    for i in range(kept):
        out[row.ids[i]] = row.masses[i] > 0
