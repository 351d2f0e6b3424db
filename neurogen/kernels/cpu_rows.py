"""A row of logits on the CPU, in chunks of 128 that are worked on side by side.

Every pass over a row is a loop over chunks, and every loop over a chunk has a constant length, so that it becomes
vector code. What is left behind the last whole chunk is copied and filled up with -inf. No function returns a slice:
Numba would count references to it, atomically, for every chunk.

    scan       reads the row once: the largest logit of every chunk, and of the row
    weigh      reads it once: the mass of every chunk, exactly
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_vectors import LANES, at_least, everywhere, greater, largest_of, load, lowest_bit, total_of
from neurogen.kernels.numerics import (
    MANTISSA_SHIFT,
    NEGATIVE_INFINITY,
    exponential,
    key_of,
    mass_bits,
    mass_of,
    scale_of,
    to_float32,
)

__all__ = [
    "CHUNK",
    "EVERYTHING",
    "NOTHING",
    "SAMPLED_CHUNKS",
    "Kept",
    "Row",
    "argmax_of",
    "at_row",
    "first_of",
    "load_chunk",
    "mass_at",
    "open_row",
    "rank_from",
    "rank_of",
    "rank_value",
    "scan",
    "sum_of",
    "weigh",
]

NOTHING = NEGATIVE_INFINITY
"""The largest logit of a row without a valid distribution."""

CHUNK = 2 * LANES
SAMPLED_CHUNKS = 32
"""A sample of a row has the logits of so many chunks or more, but fewer than twice as many."""
ESTIMATES = 2 * SAMPLED_CHUNKS * CHUNK + 3 * LANES


class Kept(NamedTuple):
    """What a cut returns: a type of its own, so that a definition which returns another number is refused.

    Attributes:
        count: int64, how many tokens it kept, now listed in `row.ids` and `row.masses`; or that of EVERYTHING.
    """

    count: Any


EVERYTHING = Kept(np.int64(-1))
"""What a cut returns that removes no token: then none is listed."""

MAGNITUDE = np.int32(0x7FFFFFFF)
NORMAL_DOUBLED = np.uint32(0x01000000)  # the bits of the least normal float32, shifted by one
SIGN_SHIFT = np.int32(31)
ORDERED_LOWEST = np.uint32(0x807FFFFF)  # see rank_of: the bits of -inf, ordered
INVALID_RANK = np.uint32(0x7F800000 + 0x100000000 - 0x807FFFFF)  # of +inf; NaN of either sign lies above
ZERO_RANK = np.uint32(0x100000000 - 0x807FFFFF)  # of +0; that of -0 is one less

HIGH_BITS = 22
HIGH = np.float32(1.5 * 2 ** (23 - HIGH_BITS))  # adding and subtracting it rounds to multiples of 2**-22
HIGH_PATTERN = HIGH.view(np.uint32)
MANTISSA_MIDDLE = np.uint32(0x400000)


class Row(NamedTuple):
    """One row and the space to work on it. `ids`, `keys` and `masses` hold what has been listed of it.

    Attributes:
        logits: [vocab], as stored: float32, uint16 (bfloat16) or int16 (float16).
        maxima: uint32 [chunks], the rank of the largest logit of each chunk.
        sums: int64 [chunks], the mass of each chunk after `weigh`.
        ids: int32 [chunks * CHUNK + LANES]; keys: uint32, masses: int64 [chunks * CHUNK].
        reached: uint64 [chunks * CHUNK / LANES], one bit a logit.
        estimates: float32 [chunks + ESTIMATES], for `cpu_rough.estimate_exponent`.
        scratch: float32 [CHUNK].
        weighed: float32 [1], the scale with which `masses` were made.
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
    reached: Any
    estimates: Any
    scratch: Any
    weighed: Any
    top: Any
    scale: Any
    bits: Any


@register_jitable
def open_row(flat: Any, vocab: Any) -> Any:
    """Space to work on rows of a batch, one after another; see `at_row`.

    In one piece of memory: nine would cost as much as a small row.
    """
    chunks = (vocab + CHUNK - 1) // CHUNK
    size, vectors = chunks * CHUNK, chunks * CHUNK // LANES
    words = (size + LANES) // 2  # of 64 bits, for as many of 32 bits, and some more
    singles = 2 * chunks + CHUNK + ESTIMATES + 1
    space = np.empty(size + chunks + vectors + 2 * words + (singles + 1) // 2, np.int64)
    masses, at = space[:size], size
    sums, at = space[at : at + chunks], at + chunks
    reached, at = space[at : at + vectors].view(np.uint64), at + vectors
    keys, at = space[at : at + words].view(np.uint32), at + words
    ids, at = space[at : at + words].view(np.int32), at + words
    rest = space[at:].view(np.float32)
    maxima = rest[:chunks].view(np.uint32)
    scratch = rest[chunks : chunks + CHUNK]
    weighed = rest[chunks + CHUNK : chunks + CHUNK + 1]
    estimates = rest[chunks + CHUNK + 1 :]
    row, scale, bits = flat[:vocab], np.float32(0), mass_bits(vocab)
    return Row(row, maxima, sums, ids, keys, masses, reached, estimates, scratch, weighed, NOTHING, scale, bits)


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
        space.reached,
        space.estimates,
        space.scratch,
        space.weighed,
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
def rank_of(x: Any) -> Any:
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
def rank_from(x: Any) -> Any:
    """The lowest rank of a float32 that is not below `x`: for zero that of -0."""
    return np.uint32(min(rank_of(x), ZERO_RANK - np.uint32(1))) if x == 0 else rank_of(x)


@register_jitable
def _chunk_maximum(chunk: Any) -> Any:
    """The largest rank of a chunk, by integers alone."""
    best = np.uint32(0)
    for i in range(CHUNK):
        best = max(best, rank_of(to_float32(chunk[i])))
    return best


@register_jitable
def scan(logits: Any, maxima: Any, scratch: Any) -> Any:
    """Note the rank of every chunk's largest logit; return the row's, or `NOTHING` for NaN, +inf or only -inf.

    Compares numbers, which is quicker than ranks. Integers decide where that is not enough: in a chunk without any
    logit above the subnormals, since a thread may take those for 0, and in the whole row once a NaN is in the sums.
    """
    best = np.uint32(0)
    whole = len(logits) // CHUNK
    sums = everywhere(np.float32(0))  # NaN where a logit is, or where two infinities met
    for c in range(whole):
        first, second = load(logits, c * CHUNK), load(logits, c * CHUNK + LANES)
        sums = sums + first + second
        top = np.float32(largest_of(greater(first, second)))
        if np.uint32(top.view(np.uint32) << np.uint32(1)) >= NORMAL_DOUBLED:
            maxima[c] = rank_of(top)
        else:
            maxima[c] = _chunk_maximum(logits[c * CHUNK : c * CHUNK + CHUNK])
    total = total_of(sums)
    if total != total:
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
    return first_of(row.logits, row.top, row.maxima, row.scratch)


@register_jitable
def first_of(logits: Any, top: Any, maxima: Any, scratch: Any) -> Any:
    """The lowest id whose logit is the largest, which is `top`, after `scan`. Reads one chunk."""
    rank = rank_from(top)
    key = key_of(top)
    for c in range(len(maxima)):
        if maxima[c] >= rank:
            load_chunk(logits, c * CHUNK, scratch)
            for start in range(0, CHUNK, LANES):
                bits = at_least(load(scratch, start), top)
                while bits != 0:
                    i = start + lowest_bit(bits)
                    if key_of(scratch[i]) == key:  # where subnormals are taken for 0, others reach it too
                        return c * CHUNK + i
                    bits &= bits - np.uint64(1)
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
def mass_at(row: Any, i: Any) -> Any:
    """The mass of one token."""
    return mass_of(to_float32(row.logits[i]), row.top, row.scale, row.bits)
