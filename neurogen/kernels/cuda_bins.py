"""Histograms over an interval of numbers in shared memory on CUDA: the bin in which weights reach what is wanted.

What is looked for among a thousand numbers is found with a pass or two over them, where halving the interval would take
thirty. A bin is a run of 2**shift numbers, bin 0 the largest ones, so that weights are summed in descending order.

Weights are added in fields of 15 bits, each to a counter of 32: a card adds 64 bits to shared memory by trying again
until nobody came between, which among a thousand threads takes longer than halving would.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_block import block_before, device
from neurogen.kernels.cuda_parts import share_of
from neurogen.kernels.cuda_rows import BINS, FIELDS

__all__ = [
    "add_to_bin",
    "bin_in",
    "clear_bins",
    "count_in_bin",
    "first_of_bin",
    "first_reaching",
    "number_in",
    "pick_bin",
    "shift_for",
]

PLACE, LEFT = 0, 1  # places in `found`
LAST_BIN = np.uint64(BINS - 1)
FIELD_BITS = np.int64(15)
FIELD = np.int64((1 << 15) - 1)


@device
def shift_for(low, high):  # type: ignore[no-untyped-def]
    """The least shift with which the numbers from `low` on and below `high`, uint64, fall into BINS bins."""
    span = np.uint64(high - low - np.uint64(1))
    shift, step = np.uint64(0), np.uint64(32)
    while step > 0:
        if (span >> np.uint64(shift + step - np.uint64(1))) > LAST_BIN:
            shift = np.uint64(shift + step)
        step >>= np.uint64(1)
    return shift


@device
def bin_in(number, low, shift):  # type: ignore[no-untyped-def]
    """The bin of a number of the interval that begins at `low`."""
    return np.int32(LAST_BIN - (np.uint64(number - low) >> shift))


@device
def first_of_bin(place, low, shift):  # type: ignore[no-untyped-def]
    """The lowest number of a bin."""
    return np.uint64(low + (np.uint64(BINS - 1 - place) << shift))


@device
def clear_bins(space):  # type: ignore[no-untyped-def]
    """Set all bins to 0. Starts and ends with a barrier."""
    cuda.syncthreads()
    i = cuda.threadIdx.x
    while i < FIELDS * BINS:
        space.counters[i] = np.uint32(0)
        i += cuda.blockDim.x
    cuda.syncthreads()


@device
def count_in_bin(space, place):  # type: ignore[no-untyped-def]
    """Count one more number in a bin, which then weighs as much."""
    cuda.atomic.add(space.counters, place, np.uint32(1))


@device
def add_to_bin(space, place, weight):  # type: ignore[no-untyped-def]
    """Count one more number in a bin, with its weight, at most 2**45."""
    cuda.atomic.add(space.counters, place, np.uint32(1))
    cuda.atomic.add(space.counters, BINS + place, np.uint32(weight & FIELD))
    cuda.atomic.add(space.counters, 2 * BINS + place, np.uint32((weight >> FIELD_BITS) & FIELD))
    cuda.atomic.add(space.counters, 3 * BINS + place, np.uint32(weight >> (FIELD_BITS + FIELD_BITS)))


@device
def number_in(space, place):  # type: ignore[no-untyped-def]
    """How many numbers a bin holds."""
    return np.int64(space.counters[place])


@device
def _weight_in(space, place, counted):  # type: ignore[no-untyped-def]
    if counted:
        return np.int64(space.counters[place])
    low, middle = np.int64(space.counters[BINS + place]), np.int64(space.counters[2 * BINS + place])
    high = np.int64(space.counters[3 * BINS + place])
    return low + (middle << FIELD_BITS) + (high << (FIELD_BITS + FIELD_BITS))


@device
def pick_bin(space, wanted, counted):  # type: ignore[no-untyped-def]
    """The first bin with which the weights reach `wanted`, at most their sum; and what is wanted of that bin.

    Every number weighs 1 where they are `counted`. Starts and ends with a barrier.
    """
    cuda.syncthreads()
    i = cuda.threadIdx.x
    while i < BINS:
        space.bins[i] = _weight_in(space, i, counted)
        i += cuda.blockDim.x
    cuda.syncthreads()
    return first_reaching(space, space.bins, BINS, wanted)


@device
def first_reaching(space, weights, size, wanted):  # type: ignore[no-untyped-def]
    """The first of `size` shared int64 weights with which these reach `wanted`, and what is wanted of that one.

    `wanted` is at least 1 and at most their sum. Ends with a barrier.
    """
    each = share_of(size)
    first = min(cuda.threadIdx.x * each, size)
    last = min(first + each, size)
    own = np.int64(0)
    i = first
    while i < last:
        own += weights[i]
        i += 1
    left = wanted - block_before(space.sums, own)
    if 0 < left <= own:
        i = first
        while left > weights[i]:
            left -= weights[i]
            i += 1
        space.found[PLACE], space.found[LEFT] = np.int64(i), left
    cuda.syncthreads()
    return np.int32(space.found[PLACE]), space.found[LEFT]
