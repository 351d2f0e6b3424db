"""Truncations of a row on CUDA: which tokens a sampler keeps. The definitions of plugins are made of these.

Every truncation here keeps a prefix in the order of tokens (logit descending, then id ascending) and returns its cut.
The usual row is read once: a bound that the groups' maxima give lists enough tokens in shared memory, and the cut is
found among those. Where they do not fit or do not suffice, a histogram over the row finds a narrower place to list.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_bins import (
    bin_in,
    clear_bins,
    count_in_bin,
    first_of_bin,
    first_reaching,
    number_in,
    pick_bin,
    poured,
    shift_for,
)
from neurogen.kernels.cuda_block import block_largest, block_sum, device, mass, warp_of, warps
from neurogen.kernels.cuda_list import (
    collect,
    collect_bin,
    cut_listed,
    empty,
    is_listed,
    keep_listed,
    mass_listed,
    weigh_parts,
)
from neurogen.kernels.cuda_parts import bin_of, locate, part_weights
from neurogen.kernels.cuda_rows import GROUPS, LISTED, LOWEST, NEVER, PARTS, clear, reader
from neurogen.kernels.numerics import NEGATIVE_INFINITY, key_of, nucleus_mass, value_of

__all__ = [
    "AIM",
    "DIGITS",
    "DIGIT_BITS",
    "everything",
    "heavier",
    "heavy_enough",
    "largest",
    "nth_maximum",
    "nucleus",
    "reach",
]

AIM = GROUPS * 53 // 64
"""A nucleus is looked for above so many of the groups' maxima: 1.76 * GROUPS tokens where their order is random."""

CLOSE_ENOUGH = 5
"""The bound of a list is looked for until at most GROUPS / 2**5 of the groups' maxima may lie too low for it."""

DIGIT_BITS = LISTED.bit_length() - 1  # a digit of a key has as many values as a histogram has bins
DIGITS = -(-32 // DIGIT_BITS)
WIDTH = np.float32(4.0)
"""A wide histogram over logits spans the distance from the largest of the groups' maxima to the least so many times.
A near one spans it once, which is about seven times as many tokens as there are groups where their order is random."""
NEAR = 4
"""Up to so many times as many tokens as there are groups are looked for in a near histogram first."""
BIN = 0  # a place in `found`


@device
def everything(row):  # type: ignore[no-untyped-def]
    """Keep all tokens above -inf. Reads nothing."""
    return LOWEST, row.vocab


@device
def largest(row, k):  # type: ignore[no-untyped-def]
    """Keep the k largest logits, the lower id first among equals; k <= 0 keeps all.

    The k-th largest of the groups' maxima is a lower bound of the k-th largest logit, and hardly more than k logits
    reach it where k is well below GROUPS. Reads the row once for those; more often for a larger k, or where too many
    logits tie (see `_cut`).
    """
    if k <= 0 or k >= row.vocab:
        return LOWEST, row.vocab
    count = np.int64(LISTED + 1)
    if k <= AIM:
        count, _ = collect(row, nth_maximum(row, np.int64(k)), False)
    return _cut(row, count, count > LISTED, np.int64(k), True, AIM < k <= NEAR * GROUPS)


@device
def nucleus(row, p, cut=None):  # type: ignore[no-untyped-def]
    """Keep the smallest prefix whose mass reaches p of the row's; p >= 1 keeps all.

    After another truncation, `nucleus(row, p, largest(row, k))`, the prefix of what that kept, whose mass is then the
    whole: reads nothing where that is listed, else the row once for its mass where that is not known, and as `_cut`.

    Reads the row once where the nucleus has no more tokens than are listed, about 1.76 * GROUPS; more often for a
    flatter row (see `_cut`).
    """
    if cut is not None:
        return _nucleus_of(row, p, cut)
    if p >= 1:
        return LOWEST, row.vocab
    count, total = collect(row, nth_maximum(row, np.int64(AIM)), True)
    wanted = nucleus_mass(p, total)
    listed = mass_listed(row, count) if count <= LISTED else np.int64(0)
    near = count <= LISTED and (total - listed) >> np.int64(1) <= total - wanted
    return _cut(row, count, listed < wanted, wanted, False, near)


@device
def _nucleus_of(row, p, cut):  # type: ignore[no-untyped-def]
    """The nucleus of what a cut keeps: a prefix of the row too, so it is looked for by its mass alone."""
    if p >= 1:
        return cut
    if is_listed(row, cut):
        count, total = keep_listed(row, cut)
        return cut_listed(row, count, nucleus_mass(p, total), False)
    total = part_weights(row, cut, False)
    return _cut(row, np.int64(LISTED + 1), True, nucleus_mass(p, total), False, False)


@device
def heavier(row, share):  # type: ignore[no-untyped-def]
    """Keep the tokens with at least `share` of the most probable token's probability; share <= 0 keeps all.

    This is min-p (Nguyen et al., 2024, "Turning Up the Heat"). A mass never falls with the logit, so the lowest key
    that is heavy enough is found without the row, by one thread: reads nothing.
    """
    wanted = nucleus_mass(share, np.int64(1) << np.int64(row.bits))
    if share <= 0 or wanted <= 1:
        return LOWEST, row.vocab
    return heavy_enough(row, wanted)


@device
def heavy_enough(row, wanted):  # type: ignore[no-untyped-def]
    """Keep the tokens with at least this mass, which the most probable one has. Reads nothing."""
    found = row.space.found
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        low, high = np.int64(key_of(NEGATIVE_INFINITY)), np.int64(key_of(row.top))
        while high - low > 1:
            middle = (low + high) >> np.int64(1)
            if mass(value_of(np.uint32(middle)), row.top, row.scale, row.bits) >= wanted:
                high = middle
            else:
                low = middle
        found[BIN] = high
    cuda.syncthreads()
    return np.uint32(found[BIN]), row.vocab


@device
def nth_maximum(row, n):  # type: ignore[no-untyped-def]
    """A key that at least n of the groups' maxima reach, and hardly more unless they are equal; at least LOWEST."""
    space = row.space
    low, high = _least_maximum(space), np.uint64(key_of(row.top)) + np.uint64(1)
    if low < np.uint64(LOWEST):
        low = np.uint64(LOWEST)
        if _maxima_from(space, low) < n:
            return LOWEST
    shift, held = np.uint64(1), np.int64(GROUPS)
    while shift > 0 and held > GROUPS >> CLOSE_ENOUGH:
        shift = shift_for(low, high)
        clear_bins(space)
        i = cuda.threadIdx.x
        while i < GROUPS:
            key = np.uint64(space.maxima[i])
            if low <= key < high:
                count_in_bin(space, bin_in(key, low, shift))
            i += cuda.blockDim.x
        place, n = pick_bin(space, n, True)
        held = number_in(space, place)
        low = first_of_bin(place, low, shift)
        high = min(high, np.uint64(low + (np.uint64(1) << shift)))
    return np.uint32(low)


@device
def _least_maximum(space):  # type: ignore[no-untyped-def]
    """The least of the groups' maxima. A barrier."""
    own = np.int64(0)
    i = cuda.threadIdx.x
    while i < GROUPS:
        own = max(own, np.int64(NEVER) - np.int64(space.maxima[i]))
        i += cuda.blockDim.x
    return np.uint64(np.int64(NEVER) - block_largest(space.sums, own))


@device
def _maxima_from(space, low):  # type: ignore[no-untyped-def]
    """How many of the groups' maxima reach a key."""
    count, start = np.int64(0), 0
    while start < GROUPS:
        i = start + cuda.threadIdx.x
        start += cuda.blockDim.x
        reaches = np.uint64(space.maxima[i]) >= low if i < GROUPS else False
        count += cuda.syncthreads_count(np.int32(reaches))
    return count


# Where a prefix ends in a row that has not been listed.


@device
def _cut(row, count, missing, wanted, counted, near):  # type: ignore[no-untyped-def]
    """The cut of the smallest prefix that holds `wanted` tokens (`counted`), or as many as there are, or `wanted` mass.

    Where the tokens listed are `missing` some of it, reads the row twice: for a histogram over logits, and to list the
    tokens of the bin in which the prefix ends. A `near` histogram is of few tokens, and where the prefix ends below
    them, once more for a wide one. Only where the tokens of the bin do not fit, because very many logits are nearly
    equal, three times for the digits of the key, and once more for the last id kept where tokens tie at the cut.
    """
    left, key, inside = np.int64(wanted), np.uint32(0), np.int64(0)
    if missing:
        count, left, key, inside = _narrow(row, wanted, counted, near)
    if count <= LISTED:
        cut = cut_listed(row, count, min(left, count) if counted else left, counted)
        if missing:
            weigh_parts(row, count, cut)
        return cut
    unit = np.int64(1) if counted else mass(value_of(key), row.top, row.scale, row.bits)
    kept = (left + unit - 1) // unit
    if kept * unit >= inside:
        return key, row.vocab
    part_weights(row, (key, np.int32(0)), True)
    return key, np.int32(locate(row, (key, np.int32(0)), True, kept))


@device
def _narrow(row, wanted, counted, near):  # type: ignore[no-untyped-def]
    """Find the bin over logits in which the prefix ends, and list its tokens; or else the key, digit by digit.

    Returns:
        How many are listed, or more than LISTED where they do not fit; what is wanted of them, or of those with the
        key; the key, and the weight that has it.
    """
    least = value_of(np.uint32(_least_maximum(row.space)))
    inverse = _bins_per_logit(row, least, counted, near)
    key, left, inside = np.uint32(0), np.int64(wanted), np.int64(0)
    digit = DIGITS if inverse > 0 else DIGITS - 1
    while digit >= 0:
        shift = np.uint32(digit * DIGIT_BITS)
        _histogram(row, inverse, least if near and inverse > 0 else NEGATIVE_INFINITY, key, shift, counted, wanted)
        place, left, inside = reach(row, left)
        if inverse == 0:
            key |= np.uint32(np.uint32(LISTED - 1 - place) << shift)
            digit -= 1
        else:
            below = place == LISTED - 1
            if not below:
                count = collect_bin(row, inverse, place)
                if count <= LISTED:
                    return count, left, key, inside
            wide = _bins_per_logit(row, least, counted, False)
            inverse = wide if below and wide < inverse else np.float32(0)
            near, left = False, np.int64(wanted)
            digit = DIGITS if inverse > 0 else DIGITS - 1
    return np.int64(LISTED + 1), left, key, inside


@device
def _bins_per_logit(row, least, counted, near):  # type: ignore[no-untyped-def]
    """How many bins of a histogram a logit spans, whose `least` is that of the groups' maxima; 0 if it is of no use."""
    width = (np.float32(1.0) if near else WIDTH) * np.float32(row.top - least)
    if not counted:
        width = min(width, np.float32(row.bits) / row.scale)  # below that, all masses are 1
    return np.float32(LISTED) / width if 0 < width < np.inf else np.float32(0)


def _binned(row, state, x, i):  # type: ignore[no-untyped-def]
    inverse, lowest, key, shift, counted, place, weight = state
    if x >= lowest:
        own, more = bin_of(x, row.top, inverse, key, shift), np.int64(0)
        if own >= 0:
            more = np.int64(1) if counted else mass(x, row.top, row.scale, row.bits)
        place, weight = poured(row.space, place, weight, own, more)
    return inverse, lowest, key, shift, counted, place, weight


_read_histogram = reader(_binned, ahead=True)


@device
def _histogram(row, inverse, lowest, key, shift, counted, beyond):  # type: ignore[no-untyped-def]
    """Fill the LISTED bins in `masses`: over logits or over a digit of the key, see `bin_of`. Reads the row once.

    Where only the logits from `lowest` on are to go to a bin, the last one holds what is `beyond` these.
    """
    empty(row)
    clear(row.space.masses, LISTED)
    cuda.syncthreads()
    place, weight = np.int32(-1), np.int64(0)
    part = warp_of()
    while part < PARTS:
        state = (inverse, lowest, key, shift, counted, place, weight)
        _, _, _, _, _, place, weight = _read_histogram(row, part, state)
        part += warps()
    poured(row.space, place, weight, np.int32(-1), np.int64(0))
    cuda.syncthreads()
    if lowest > NEGATIVE_INFINITY:
        if cuda.threadIdx.x == 0:
            row.space.masses[LISTED - 1] = beyond
        cuda.syncthreads()


@device
def reach(row, wanted):  # type: ignore[no-untyped-def]
    """The bin in which the weights reach `wanted` or all there is, what is wanted of that bin, and what it holds."""
    masses = row.space.masses
    own = np.int64(0)
    i = cuda.threadIdx.x
    while i < LISTED:
        own += masses[i]
        i += cuda.blockDim.x
    wanted = min(wanted, block_sum(row.space.sums, own))
    place, left = first_reaching(row.space, masses, LISTED, wanted)
    return place, left, masses[place]
