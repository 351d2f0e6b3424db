"""A row of logits on the CPU, in chunks of 128 that are worked on side by side.

Every pass over a row is a loop over chunks, and every loop over a chunk has a constant length, so that it becomes
vector code. What is left behind the last whole chunk is copied and filled up with -inf. No function returns a slice:
Numba would count references to it, atomically, for every chunk.

    scan       reads the row once: the largest logit of every chunk, and of the row
    weigh      reads it once: the mass of every chunk, exactly; weigh_roughly that of the row, in half the time
    collect    reads the chunks that hold a logit of at least a threshold, and lists those tokens in order of their ids
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_vectors import LANES, at_least, lowest_bit
from neurogen.kernels.numerics import (
    MANTISSA_SHIFT,
    NEGATIVE_INFINITY,
    exponential,
    fused_mul_add,
    key_of,
    mass_bits,
    mass_of,
    scale_of,
    split_exponent,
    times_power,
    to_float32,
    value_of,
)

__all__ = [
    "CHUNK",
    "EVERYTHING",
    "NOTHING",
    "Row",
    "argmax_of",
    "at_row",
    "collect",
    "load_chunk",
    "mass_at",
    "open_row",
    "rank_value",
    "rough_mass",
    "scan",
    "sum_of",
    "weigh",
    "weigh_listed",
    "weigh_roughly",
]

NOTHING = NEGATIVE_INFINITY
"""The largest logit of a row without a valid distribution."""

CHUNK = 128  # two vectors of comparisons; a multiple of LANES
EVERYTHING = -1
"""What a cut returns that removes no token: then none is listed."""

MAGNITUDE = np.int32(0x7FFFFFFF)
SIGN_SHIFT = np.int32(31)
ORDERED_LOWEST = np.uint32(0x807FFFFF)  # see _rank_of: the bits of -inf, ordered
INVALID_RANK = np.uint32(0x7F800000 + 0x100000000 - 0x807FFFFF)  # of +inf; NaN of either sign lies above
ZERO_RANK = np.uint32(0x100000000 - 0x807FFFFF)  # of +0; that of -0 is one less

HIGH_BITS = 22
HIGH = np.float32(1.5 * 2 ** (23 - HIGH_BITS))  # adding and subtracting it rounds to multiples of 2**-22
HIGH_PATTERN = HIGH.view(np.uint32)
MANTISSA_MIDDLE = np.uint32(0x400000)

ROUGH_LANES = CHUNK // 4
ROUGH_0 = np.float32(0.9999992847442627)
ROUGH_1 = np.float32(0.6931217908859253)
ROUGH_2 = np.float32(0.240247443318367)
ROUGH_3 = np.float32(0.05591785907745361)
ROUGH_4 = np.float32(0.009570102207362652)
ROUGH = 3e-6  # found: 2.7e-6
ROUGH_CHUNKS = 4
ROUGH_SUM = 2.0**-21  # two and four additions of float32, 2**-24 each, and what float64 adds to that
LEAST_NORMAL = np.float32(-126.0)  # exponent of the smallest normal float32


class Row(NamedTuple):
    """One row and the space to work on it. `ids`, `keys` and `masses` hold what has been listed of it.

    Attributes:
        logits: [vocab], as stored: float32, uint16 (bfloat16) or int16 (float16).
        maxima: uint32 [chunks], the rank of the largest logit of each chunk.
        sums: int64 [chunks], the mass of each chunk after `weigh`.
        ids: int32 [chunks * CHUNK]; keys: uint32, masses: int64, likewise.
        scratch: float32 [CHUNK].
        top: the largest logit, float32, or `NOTHING`.
        scale: `scale_of(temperature)`.
        bits: `mass_bits(vocab)`.
    """

    logits: Any
    maxima: Any
    sums: Any
    ids: Any
    keys: Any
    masses: Any
    scratch: Any
    top: Any
    scale: Any
    bits: Any


@register_jitable
def open_row(flat: Any, vocab: Any) -> Any:
    """Space to work on rows of a batch, one after another; see `at_row`."""
    chunks = (vocab + CHUNK - 1) // CHUNK
    return Row(
        flat[:vocab],
        np.empty(chunks, np.uint32),
        np.empty(chunks, np.int64),
        np.empty(chunks * CHUNK, np.int32),
        np.empty(chunks * CHUNK, np.uint32),
        np.empty(chunks * CHUNK, np.int64),
        np.empty(CHUNK, np.float32),
        NOTHING,
        np.float32(0),
        mass_bits(vocab),
    )


@register_jitable
def at_row(space: Any, flat: Any, start: Any, temperature: Any) -> Any:
    """The row that starts at `start`, scanned, in the space of another row of the same vocabulary. Reads it once."""
    logits = flat[start : start + len(space.logits)]
    top = scan(logits, space.maxima, space.scratch)
    return Row(
        logits,
        space.maxima,
        space.sums,
        space.ids,
        space.keys,
        space.masses,
        space.scratch,
        top,
        scale_of(temperature),
        space.bits,
    )


@register_jitable
def load_chunk(logits: Any, start: Any, scratch: Any) -> None:
    """Copy up to 128 logits from `start` on into `scratch` as float32, filled up with -inf."""
    if start + CHUNK <= len(logits):
        _decode(logits[start : start + CHUNK], scratch)
        return
    scratch[:] = NEGATIVE_INFINITY
    for i in range(len(logits) - start):
        scratch[i] = to_float32(logits[start + i])


@register_jitable
def _decode(stored: Any, scratch: Any) -> None:
    for i in range(CHUNK):
        scratch[i] = to_float32(stored[i])


# The largest logit.


@register_jitable
def _rank_of(x: Any) -> Any:
    """A uint32 that orders float32 as they are, from 0 for -inf on; -0 just below +0, NaN above +inf whatever its sign.

    Cheaper than `key_of`, which takes both zeros for equal: for finding where to look, not for deciding.
    """
    bits = np.float32(x).view(np.int32)
    ordered = np.int32(bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE))
    return np.uint32(np.uint32(ordered) - ORDERED_LOWEST)


@register_jitable
def rank_value(rank: Any) -> Any:
    """The float32 of a rank."""
    ordered = np.int32(np.uint32(rank + ORDERED_LOWEST))
    return np.int32(ordered ^ ((ordered >> SIGN_SHIFT) & MAGNITUDE)).view(np.float32)


@register_jitable
def _rank_from(x: Any) -> Any:
    """The lowest rank of a float32 that is not below `x`: for zero that of -0."""
    return np.uint32(min(_rank_of(x), ZERO_RANK - np.uint32(1))) if x == 0 else _rank_of(x)


@register_jitable
def _chunk_maximum(chunk: Any) -> Any:
    best = np.uint32(0)
    for i in range(CHUNK):
        best = max(best, _rank_of(to_float32(chunk[i])))
    return best


@register_jitable
def scan(logits: Any, maxima: Any, scratch: Any) -> Any:
    """Note the rank of every chunk's largest logit; return the row's, or `NOTHING` for NaN, +inf or only -inf."""
    best = np.uint32(0)
    whole = len(logits) // CHUNK
    for c in range(whole):
        maxima[c] = _chunk_maximum(logits[c * CHUNK : c * CHUNK + CHUNK])
    if whole < len(maxima):
        load_chunk(logits, whole * CHUNK, scratch)
        maxima[whole] = _chunk_maximum(scratch)
    for c in range(len(maxima)):
        best = max(best, maxima[c])
    return NOTHING if best >= INVALID_RANK else rank_value(best)


@register_jitable
def argmax_of(row: Any) -> Any:
    """The lowest id whose logit is the largest. Reads one chunk."""
    rank = _rank_from(row.top)
    key = key_of(row.top)
    for c in range(len(row.maxima)):
        if row.maxima[c] >= rank:
            load_chunk(row.logits, c * CHUNK, row.scratch)
            for i in range(CHUNK):
                if key_of(row.scratch[i]) == key:
                    return c * CHUNK + i
    return -1


# Masses.


@register_jitable
def _chunk_mass(chunk: Any, top: Any, scale: Any, bits: Any) -> Any:
    """The sum of `mass_of` over a chunk, exactly, in 32-bit integers.

    A mass is rounded to units of 2**-bits in two steps of 22 and bits - 22 bits. After adding 1.5 * 2**(23 - n), a
    float has the number of its multiples of 2**-n in the low bits; these are summed, and what the constant put there is
    taken away at the end. Neither sum overflows: 128 * 2**22 is 2**29.
    """
    low_pattern = np.uint32(np.uint32(np.uint32(150 - bits) << MANTISSA_SHIFT) | MANTISSA_MIDDLE)
    low_unit = low_pattern.view(np.float32)
    lowest = np.float32(-bits)
    high_sum = np.uint32(0)
    low_sum = np.uint32(0)
    for i in range(CHUNK):
        v = exponential(to_float32(chunk[i]), top, scale, lowest)
        high = np.float32(v + HIGH)
        low = np.float32(np.float32(v - np.float32(high - HIGH)) + low_unit)
        high_sum = np.uint32(high_sum + high.view(np.uint32))
        low_sum = np.uint32(low_sum + low.view(np.uint32))
    high_sum = np.uint32(high_sum - np.uint32(CHUNK) * HIGH_PATTERN)
    low_sum = np.uint32(low_sum - np.uint32(CHUNK) * low_pattern)
    return (np.int64(np.int32(high_sum)) << np.int64(bits - HIGH_BITS)) + np.int64(np.int32(low_sum))


@register_jitable
def weigh(row: Any) -> Any:
    """Note the mass of every chunk; return the exact mass of the row, below 2**62. Reads it once."""
    whole = len(row.logits) // CHUNK
    for c in range(whole):
        row.sums[c] = _chunk_mass(row.logits[c * CHUNK : c * CHUNK + CHUNK], row.top, row.scale, row.bits)
    if whole < len(row.sums):
        load_chunk(row.logits, whole * CHUNK, row.scratch)
        row.sums[whole] = _chunk_mass(row.scratch, row.top, row.scale, row.bits)
    return sum_of(row.sums)


@register_jitable
def sum_of(masses: Any) -> Any:
    """The exact sum of masses, below 2**62. By index: Numba's loops over elements do not become vector code."""
    total = np.int64(0)
    for i in range(len(masses)):
        total += masses[i]
    return total


@register_jitable
def rough_mass(x: Any, top: Any, scale: Any) -> Any:
    """exp((x - top) / temperature) as float32 with a relative error below ROUGH: cheaper than `exponential`.

    Where t is that of `exponential`, so the error is of the polynomial alone (degree 4, minimax on [-1/2, 1/2]).
    """
    f, shifted = split_exponent(x, top, scale, LEAST_NORMAL)
    p = fused_mul_add(ROUGH_4, f, ROUGH_3)
    p = fused_mul_add(p, f, ROUGH_2)
    p = fused_mul_add(p, f, ROUGH_1)
    p = fused_mul_add(p, f, ROUGH_0)
    return times_power(p, shifted)


@register_jitable
def _rough_lanes(chunk: Any, top: Any, scale: Any, lanes: Any) -> None:
    """Add the rough masses of a chunk to float32 [32]."""
    for j in range(ROUGH_LANES):
        a = rough_mass(to_float32(chunk[j]), top, scale) + rough_mass(to_float32(chunk[j + 32]), top, scale)
        b = rough_mass(to_float32(chunk[j + 64]), top, scale) + rough_mass(to_float32(chunk[j + 96]), top, scale)
        lanes[j] = np.float32(lanes[j] + np.float32(a + b))


@register_jitable
def _empty_lanes(lanes: Any, totals: Any) -> None:
    """Apart from `_rough_lanes`, which would have half as many lanes if a float64 were in its loop."""
    for j in range(len(lanes)):
        totals[j] += np.float64(lanes[j])
        lanes[j] = 0


@register_jitable
def weigh_roughly(row: Any) -> Any:
    """The mass of a row as a share of its top token's, float64. Reads it once; costs half of `weigh`.

    Off by less than ROUGH of every mass, and ROUGH_SUM of the whole for additions in float32.
    """
    lanes, totals = np.zeros(ROUGH_LANES, np.float32), np.zeros(ROUGH_LANES, np.float64)
    whole = len(row.logits) // CHUNK
    for c in range(whole):
        _rough_lanes(row.logits[c * CHUNK : c * CHUNK + CHUNK], row.top, row.scale, lanes)
        if c % ROUGH_CHUNKS == ROUGH_CHUNKS - 1:
            _empty_lanes(lanes, totals)
    _empty_lanes(lanes, totals)
    if whole < len(row.sums):
        load_chunk(row.logits, whole * CHUNK, row.scratch)
        _rough_lanes(row.scratch, row.top, row.scale, lanes)
        _empty_lanes(lanes, totals)
    return totals.sum()


@register_jitable
def mass_at(row: Any, i: Any) -> Any:
    """The mass of one token."""
    return mass_of(to_float32(row.logits[i]), row.top, row.scale, row.bits)


# Lists of tokens.


@register_jitable
def _list_lanes(values: Any, start: Any, first: Any, threshold: Any, ties: Any, ids: Any, listed: Any) -> Any:
    """List of 64 values from `start` on those that reach the threshold, but only so many that are equal to it.

    The first of them has the id `first`. `listed` is how many are listed, and how many of them are ties.
    """
    count, tied = listed
    key = key_of(threshold)  # compared as integers, for subnormal floats may all be taken for 0
    bits = at_least(values, start, threshold)
    while bits != 0:
        lane = lowest_bit(bits)
        bits &= bits - np.uint64(1)
        tie = np.int64(key_of(to_float32(values[start + lane])) == key)
        if tied + tie <= ties:
            ids[count] = first + lane
            count += 1
            tied += tie
    return count, tied


@register_jitable
def collect(row: Any, threshold: Any, ties: Any) -> Any:
    """List the tokens whose logit is at least a float32, in order of their ids, with keys; return how many.

    Subnormal logits may be taken for 0, so a few may be listed that lie below the threshold: whoever cuts compares
    keys.

    Args:
        row: scanned.
        threshold: float32.
        ties: at most so many tokens equal to the threshold are listed, those of the lowest ids.
    """
    rank = _rank_from(threshold)
    tie = max(rank, _rank_of(value_of(key_of(threshold))))  # of +0 for either zero
    vocab = len(row.logits)
    listed = (np.int64(0), np.int64(0))
    for c in range(vocab // CHUNK):
        if row.maxima[c] > tie or (row.maxima[c] >= rank and listed[1] < ties):
            for start in range(c * CHUNK, c * CHUNK + CHUNK, LANES):
                listed = _list_lanes(row.logits, start, start, threshold, ties, row.ids, listed)
    behind = vocab // CHUNK * CHUNK
    if behind < vocab:
        load_chunk(row.logits, behind, row.scratch)
        for start in range(0, CHUNK, LANES):
            listed = _list_lanes(row.scratch, start, behind + start, threshold, ties, row.ids, listed)
    count = listed[0]
    while count > 0 and row.ids[count - 1] >= vocab:
        count -= 1
    for i in range(count):
        row.keys[i] = key_of(to_float32(row.logits[row.ids[i]]))
    return count


@register_jitable
def weigh_listed(row: Any, count: Any) -> Any:
    """Note the masses of the tokens listed; return their sum."""
    for i in range(count):
        row.masses[i] = mass_of(value_of(row.keys[i]), row.top, row.scale, row.bits)
    return sum_of(row.masses[:count])
