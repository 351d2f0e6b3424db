"""Truncations by a statistic of the row, and those that keep a band of the order of tokens, on CUDA.

`likelier` and `above` keep a prefix whose end follows from the mass or deviation of the row; `typical` keeps tokens
whose surprise is near the entropy; `spared` removes the most probable ones. The first two return a cut, the others a
`Band`.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_bins import poured
from neurogen.kernels.cuda_block import block_largest, block_sum, device, mass, warp_of, warps
from neurogen.kernels.cuda_cuts import AIM, DIGIT_BITS, DIGITS, heavy_enough, nth_maximum, reach
from neurogen.kernels.cuda_draw import normalise
from neurogen.kernels.cuda_list import collect, empty
from neurogen.kernels.cuda_parts import Band, locate, part_weights, survives
from neurogen.kernels.cuda_rows import LISTED, LOWEST, PARTS, clear, first_top, logit_at, reader
from neurogen.kernels.cuda_statistics import deviation, mean_depth
from neurogen.kernels.depths import depth_of, distance_units, nearness
from neurogen.kernels.numerics import NEGATIVE_INFINITY, key_of, nucleus_mass, value_of

__all__ = ["above", "likelier", "mix", "spared", "typical", "whole"]

HIGHEST = np.uint32(0xFFFFFFFF)
NOBODY = np.int32(-1)
ID_BITS = np.int64(31)


@device
def whole(row):  # type: ignore[no-untyped-def]
    """All tokens above -inf, as a `Band`."""
    return Band(LOWEST, HIGHEST, HIGHEST, np.int32(0), NOBODY, LOWEST, NOBODY)


@device
def likelier(row, probability):  # type: ignore[no-untyped-def]
    """Keep the tokens with at least this probability, and the most probable one in any case; <= 0 keeps all.

    Reads the row once for its mass, and lists tokens as `nucleus` does.
    """
    if probability <= 0:
        return LOWEST, row.vocab
    _, total = collect(row, nth_maximum(row, np.int64(AIM)), True)
    wanted = nucleus_mass(probability, total)
    if wanted > np.int64(1) << np.int64(row.bits):
        return key_of(row.top), np.int32(first_top(row))
    if wanted <= 1:
        return LOWEST, row.vocab
    return heavy_enough(row, wanted)


@device
def above(row, deviations):  # type: ignore[no-untyped-def]
    """Keep the logits at most so many standard deviations of the finite ones below the largest; <= 0 keeps all.

    Measured before the temperature. Reads the row three times.
    """
    if deviations <= 0:
        return LOWEST, row.vocab
    sigma, unit = deviation(row)
    limit = np.int64(min(deviations * sigma, 2.0**39))
    low, high = np.int64(key_of(NEGATIVE_INFINITY)), np.int64(key_of(row.top))
    while high - low > 1:
        middle = (low + high) >> np.int64(1)
        if distance_units(value_of(np.uint32(middle)), row.top, unit) <= limit:
            high = middle
        else:
            low = middle
    return np.uint32(high), row.vocab


# Typical: what is nearest to the entropy.


@device
def typical(row, p):  # type: ignore[no-untyped-def]
    """Keep the tokens whose surprise is nearest to the entropy until their mass reaches p; p >= 1 keeps all.

    Of tokens equally near the larger logit comes first, then the lower id. The surprise differs from the entropy by
    what a token's depth below the top differs from the mean depth: no logarithm is needed. Reads the row four times:
    for the mean, and for a histogram over each digit of how near a token is; three times more where only some of those
    are kept that are equally near.
    """
    if p >= 1:
        return whole(row)
    mean, total = mean_depth(row)
    near, left, inside = _farthest(row, mean, nucleus_mass(p, total))
    band = _band_of(row, mean, near)
    if left >= inside:
        return band
    cut = Band(HIGHEST, band.high, band.upper, band.first, band.last, HIGHEST, NOBODY)
    of_upper = part_weights(row, cut, False)
    if left <= of_upper:
        last = np.int32(locate(row, cut, False, left))
        return Band(band.low, band.high, band.upper, band.first, last, band.lower, NOBODY)
    cut = Band(band.low, np.uint32(0), np.uint32(0), band.first, NOBODY, band.lower, band.lower_last)
    part_weights(row, cut, False)
    last = np.int32(locate(row, cut, False, left - of_upper))
    return Band(band.low, band.high, band.upper, band.first, band.last, band.lower, last)


@reader
def _read_near(row, state, x, i):  # type: ignore[no-untyped-def]
    mean, prefix, shift, place, weight = state
    own, more = np.int32(-1), np.int64(0)
    if x > NEGATIVE_INFINITY:
        near = nearness(depth_of(x, row.top, row.scale), mean)
        digit = np.uint32(np.uint32(near >> shift) - np.uint32(prefix >> shift))
        if digit < LISTED:
            own, more = np.int32(LISTED - 1 - np.int32(digit)), mass(x, row.top, row.scale, row.bits)
    place, weight = poured(row.space, place, weight, own, more)
    return mean, prefix, shift, place, weight


@device
def _farthest(row, mean, wanted):  # type: ignore[no-untyped-def]
    """How near the last token is that is kept, what mass is wanted of those as near, and what they hold."""
    near, left, inside = np.uint32(0), np.int64(wanted), np.int64(0)
    digit = DIGITS - 1
    while digit >= 0:
        shift = np.uint32(digit * DIGIT_BITS)
        empty(row)
        clear(row.space.masses, LISTED)
        cuda.syncthreads()
        place, weight = np.int32(-1), np.int64(0)
        part = warp_of()
        while part < PARTS:
            _, _, _, place, weight = _read_near(row, part, (mean, near, shift, place, weight))
            part += warps()
        poured(row.space, place, weight, np.int32(-1), np.int64(0))
        cuda.syncthreads()
        place, left, inside = reach(row, left)
        near |= np.uint32(np.uint32(LISTED - 1 - place) << shift)
        digit -= 1
    return near, left, inside


@device
def _band_of(row, mean, near):  # type: ignore[no-untyped-def]
    """All tokens at least so near: the keys of those nearer, and on either side of those as near.

    Nearness rises with the key up to the mean, and falls from there, so keys are found by halving, without the row.
    """
    lowest, highest = np.int64(LOWEST), np.int64(key_of(row.top))
    peak = _first_key(row, mean, np.int64(0), lowest, highest + 1, 0)
    nearer = np.int64(near) + 1
    low = _first_key(row, mean, nearer, lowest, peak, 1)
    lower = _first_key(row, mean, np.int64(near), lowest, peak, 1)
    high = _first_key(row, mean, nearer, peak, highest + 1, 2) - 1
    upper = _first_key(row, mean, np.int64(near), peak, highest + 1, 2) - 1
    return Band(
        np.uint32(low),
        np.uint32(high),
        np.uint32(upper),
        np.int32(0),
        row.vocab,
        np.uint32(lower),
        row.vocab,
    )


@device
def _first_key(row, mean, near, low, high, question):  # type: ignore[no-untyped-def]
    """The lowest key of low .. high - 1 for which a question is true, as it is for all above; or `high`.

    Args:
        question: 0: is its depth at most the mean; 1: is it at least so near; 2: is it less near.
    """
    while low < high:
        middle = (low + high) >> np.int64(1)
        depth = depth_of(value_of(np.uint32(middle)), row.top, row.scale)
        reaches = np.int64(nearness(depth, mean)) >= near
        true = np.float64(depth) <= mean if question == 0 else (reaches if question == 1 else not reaches)
        if true:
            high = middle
        else:
            low = middle + 1
    return low


# Spared: all but the most probable.


@reader
def _read_likely(row, state, x, i):  # type: ignore[no-untyped-def]
    """How many tokens are heavy enough, and the last of them in order: a code that is the larger the later."""
    wanted, count, last = state
    if mass(x, row.top, row.scale, row.bits) >= wanted:
        count += np.int64(1)
        last = max(last, (np.int64(HIGHEST) - np.int64(key_of(x))) << ID_BITS | np.int64(i))
    return wanted, count, last


@device
def spared(row, threshold):  # type: ignore[no-untyped-def]
    """Remove all tokens with at least this probability but the least probable of them (of equals the highest id).

    Where fewer than two have it, nothing is removed. Reads the row twice: for its mass, and for the last of them.
    """
    total = part_weights(row, (LOWEST, row.vocab), False)
    wanted = nucleus_mass(threshold, total)
    if threshold <= 0 or threshold > 1 or wanted > np.int64(1) << np.int64(row.bits):
        return whole(row)
    count, last = np.int64(0), np.int64(0)
    part = warp_of()
    while part < PARTS:
        _, count, last = _read_likely(row, part, (wanted, count, last))
        part += warps()
    count = block_sum(row.space.sums, count)
    last = block_largest(row.space.sums, last)
    if count < 2:
        return whole(row)
    key = np.uint32(np.int64(HIGHEST) - (last >> ID_BITS))
    i = np.int32(last & ((np.int64(1) << ID_BITS) - 1))
    return Band(LOWEST, np.uint32(key - np.uint32(1)), key, i, i, LOWEST, NOBODY)


@device
def mix(row, band, share, out, first):  # type: ignore[no-untyped-def]
    """Write the mixture of the probabilities of everything and of what a band keeps, which has this share.

    Reads the row twice, or where the band keeps less three times.
    """
    normalise(row, (LOWEST, row.vocab), out, first)
    if band.high == HIGHEST:
        return
    total = np.float64(part_weights(row, band, False))
    i = cuda.threadIdx.x
    while i < row.vocab:
        x = logit_at(row, i)
        rest = np.float32(np.float64(out[first + i]) * (1.0 - share))
        own = share * np.float64(mass(x, row.top, row.scale, row.bits)) / total
        out[first + i] = np.float32(np.float64(rest) + own) if survives(x, i, band) else rest
        i += cuda.blockDim.x
