"""Histograms over an interval of numbers in shared memory on CUDA: the bin in which weights reach what is wanted.

What is looked for among a thousand numbers is found with a pass or two over them, where halving the interval would take
thirty. A bin is a run of 2**shift numbers, bin 0 the largest ones, so that weights are summed in descending order.

All additions are of 32 bits (`add_shared` makes them of 64 so): a card adds 64 bits to shared memory by trying again
until nobody came between, which among a thousand threads takes longer than halving would.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_block import add_shared, block_before, device
from neurogen.kernels.cuda_parts import share_of
from neurogen.kernels.cuda_rows import BINS

__all__ = [
    "add_to_bin",
    "bin_in",
    "clear_bins",
    "count_in_bin",
    "first_of_bin",
    "first_reaching",
    "number_in",
    "pick_bin",
    "poured",
    "shift_for",
]

PLACE, LEFT = 0, 1  # places in `found`
LAST_BIN = np.uint64(BINS - 1)


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
    while i < BINS:
        space.counters[i], space.bins[i] = np.uint32(0), np.int64(0)
        i += cuda.blockDim.x
    cuda.syncthreads()


@device
def count_in_bin(space, place):  # type: ignore[no-untyped-def]
    """Count one more number in a bin, which then weighs as much."""
    cuda.atomic.add(space.counters, place, np.uint32(1))


@device
def add_to_bin(space, place, weight):  # type: ignore[no-untyped-def]
    """Count one more number in a bin, with its weight."""
    cuda.atomic.add(space.counters, place, np.uint32(1))
    add_shared(space.bins, place, weight)


@device
def poured(space, place, weight, own, more):  # type: ignore[no-untyped-def]
    """Add a weight to the bin `own` of `masses`, or to none (-1): the place and weight to go on with.

    What goes to the same bin is summed while it does, so that equal logits do not all wait for one place. In the end
    once more, for no bin.
    """
    if own != place:
        if place >= 0:
            add_shared(space.masses, place, weight)
        return own, more
    return place, weight + more


@device
def number_in(space, place):  # type: ignore[no-untyped-def]
    """How many numbers a bin holds."""
    return np.int64(space.counters[place])


@device
def pick_bin(space, wanted, counted):  # type: ignore[no-untyped-def]
    """The first bin with which the weights reach `wanted`, at most their sum; and what is wanted of that bin.

    Every number weighs 1 where they are `counted`. Starts and ends with a barrier.
    """
    cuda.syncthreads()
    if counted:
        return first_reaching(space, space.counters, BINS, wanted)
    return first_reaching(space, space.bins, BINS, wanted)


@device
def first_reaching(space, weights, size, wanted):  # type: ignore[no-untyped-def]
    """The first of `size` shared weights, of any integers, with which they reach `wanted`; what is wanted of that one.

    `wanted` is at least 1 and at most their sum. Ends with a barrier.
    """
    each = share_of(size)
    first = min(cuda.threadIdx.x * each, size)
    last = min(first + each, size)
    own = np.int64(0)
    i = first
    while i < last:
        own += np.int64(weights[i])
        i += 1
    left = wanted - block_before(space.sums, own)
    if 0 < left <= own:
        i = first
        while left > np.int64(weights[i]):
            left -= np.int64(weights[i])
            i += 1
        space.found[PLACE], space.found[LEFT] = np.int64(i), left
    cuda.syncthreads()
    return np.int32(space.found[PLACE]), space.found[LEFT]
