"""The tokens of a row that are listed in shared memory on CUDA, and what is found among them without the row.

A list holds all tokens from a key upwards, in any order, each as a *code*: a uint64 that is the larger the earlier the
token stands in the order of tokens. `find` answers all questions asked of it: at which code do the weights, in
descending order of codes, reach a number?
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_bins import (
    add_to_bin,
    bin_in,
    clear_bins,
    count_in_bin,
    first_of_bin,
    number_in,
    pick_bin,
    shift_for,
)
from neurogen.kernels.cuda_block import WARP, block_sum, device, lane_of, mass, warp_of, warp_sum, warps
from neurogen.kernels.cuda_parts import CUT, bin_of, mark_weighed
from neurogen.kernels.cuda_rows import (
    BINS,
    BOUND,
    COUNT,
    FOUND,
    LISTED,
    LOWEST,
    NEVER,
    PARTS,
    UNKNOWN,
    first_id,
    forget,
    reader,
    same_scale,
    slice_reader,
)
from neurogen.kernels.numerics import key_of, value_of

__all__ = [
    "LAST_ID",
    "code_of",
    "collect",
    "collect_bin",
    "cut_listed",
    "empty",
    "find",
    "id_of",
    "is_listed",
    "keep_listed",
    "mass_listed",
    "read_weighed_slice",
    "weigh_listed",
    "weigh_parts",
]

LAST_ID = np.uint64(0xFFFFFFFF)
HALF_CODE = np.uint64(32)
RANKED = 256
"""So many tokens are ranked by comparing each with all; more are narrowed down first."""
FEW = BINS // 2


@device
def code_of(key, i):  # type: ignore[no-untyped-def]
    """A uint64 for a token, the larger the earlier it stands in the order of tokens."""
    return (np.uint64(key) << HALF_CODE) | (LAST_ID - np.uint64(i))


@device
def id_of(code):  # type: ignore[no-untyped-def]
    """The id of a token from its code."""
    return np.int64(LAST_ID - (np.uint64(code) & LAST_ID))


@device
def key_in(code):  # type: ignore[no-untyped-def]
    """The key of a token from its code."""
    return np.uint32(np.uint64(code) >> HALF_CODE)


@device
def _list(row, x, i):  # type: ignore[no-untyped-def]
    marks = row.space.marks
    if marks[COUNT] <= LISTED:  # after the first that does not fit nobody need count
        place = cuda.atomic.add(marks, COUNT, np.uint32(1))
        if place < LISTED:
            row.space.codes[place] = code_of(key_of(x), i)


def _listed(row, bound, x, i):  # type: ignore[no-untyped-def]
    """List the tokens from a logit upwards."""
    if x >= bound:
        _list(row, x, i)
    return bound


@device
def _list_four(row, bound, a, b, c, d, i):  # type: ignore[no-untyped-def]
    if max(max(a, b), max(c, d)) >= bound:
        if a >= bound:
            _list(row, a, i)
        if b >= bound:
            _list(row, b, np.int32(i + 1))
        if c >= bound:
            _list(row, c, np.int32(i + 2))
        if d >= bound:
            _list(row, d, np.int32(i + 3))


def _listed_four(row, bound, a, b, c, d, i):  # type: ignore[no-untyped-def]
    _list_four(row, bound, a, b, c, d, i)
    return bound


def _weighed(row, state, x, i):  # type: ignore[no-untyped-def]
    """List the tokens from a logit upwards, and sum the masses of all."""
    bound, total = state
    if x >= bound:
        _list(row, x, i)
    return bound, total + mass(x, row.top, row.scale, row.bits)


def _weighed_four(row, state, a, b, c, d, i):  # type: ignore[no-untyped-def]
    bound, total = state
    _list_four(row, bound, a, b, c, d, i)
    total += mass(a, row.top, row.scale, row.bits) + mass(b, row.top, row.scale, row.bits)
    total += mass(c, row.top, row.scale, row.bits) + mass(d, row.top, row.scale, row.bits)
    return bound, total


_read_listed = reader(_listed, _listed_four, in_flight=4)
_read_weighed = reader(_weighed, _weighed_four)
read_weighed_slice = slice_reader(_weighed, _weighed_four)


@device
def collect(row, bound, weigh):  # type: ignore[no-untyped-def]
    """List the tokens with a key of at least `bound`, and their masses. Reads the row once, or not if they are listed.

    Returns:
        How many they are, or more than LISTED where they do not fit; and, if asked to weigh, the mass of the whole row.
    """
    space = row.space
    bound = max(bound, LOWEST)
    if row.total != UNKNOWN and bound >= space.marks[BOUND] and same_scale(row):
        return _narrowed(row, bound), row.total
    empty(row)
    lowest = value_of(bound)
    total = np.int64(0)
    part = warp_of()
    while part < PARTS:
        if weigh:
            _, total = _read_weighed(row, part, (lowest, total))
        else:
            _read_listed(row, part, lowest)
        part += warps()
    if weigh:
        total = block_sum(space.sums, total)
    cuda.syncthreads()
    count = np.int64(space.marks[COUNT])
    if count <= LISTED:
        weigh_listed(row, count)
        if cuda.threadIdx.x == 0:
            space.marks[BOUND] = bound
    cuda.syncthreads()
    return count, total


@device
def _narrowed(row, bound):  # type: ignore[no-untyped-def]
    """Remove from the list what has a key below `bound`; how many are left. Ends with a barrier."""
    count, _ = keep_listed(row, (bound, row.vocab))
    if cuda.threadIdx.x == 0:
        row.space.marks[BOUND] = bound
    cuda.syncthreads()
    return count


@device
def weigh_listed(row, count):  # type: ignore[no-untyped-def]
    """The masses of the tokens listed. No barrier."""
    i = cuda.threadIdx.x
    while i < count:
        x = value_of(key_in(row.space.codes[i]))
        row.space.masses[i] = mass(x, row.top, row.scale, row.bits)
        i += cuda.blockDim.x


def _bin(row, state, x, i):  # type: ignore[no-untyped-def]
    """List the tokens of a bin, and sum the masses of those in the bins before it."""
    inverse, place, total = state
    own = bin_of(x, row.top, inverse, np.uint32(0), np.uint32(0))
    if own == place:
        _list(row, x, i)
    elif 0 <= own < place:
        total += mass(x, row.top, row.scale, row.bits)
    return inverse, place, total


_read_bin = reader(_bin, ahead=True)


@device
def collect_bin(row, inverse, place):  # type: ignore[no-untyped-def]
    """List the tokens of one bin over logits (see `bin_of`), and their masses. Reads the row once.

    The masses of the larger logits, by part, are then in `parts`.

    Returns:
        How many are listed, or more than LISTED where they do not fit.
    """
    empty(row)
    part = warp_of()
    while part < PARTS:
        _, _, before = _read_bin(row, part, (inverse, place, np.int64(0)))
        before = warp_sum(before)
        if lane_of() == 0:
            row.space.parts[part] = before
        part += warps()
    cuda.syncthreads()
    count = np.int64(row.space.marks[COUNT])
    if count <= LISTED:
        weigh_listed(row, count)
    cuda.syncthreads()
    return count


@device
def weigh_parts(row, count, cut):  # type: ignore[no-untyped-def]
    """Add what a cut keeps of a bin that `collect_bin` has listed to the parts. Ends with a barrier."""
    space = row.space
    last = code_of(cut[0], cut[1])
    part = warp_of()
    while part < PARTS:
        first, end, own = first_id(row, part), first_id(row, part + 1), np.int64(0)
        i = lane_of()
        while i < count:
            code = space.codes[i]
            if code >= last and first <= id_of(code) < end:
                own += space.masses[i]
            i += WARP
        own = warp_sum(own)
        if lane_of() == 0:
            space.parts[part] += own
        part += warps()
    if cuda.threadIdx.x == 0:
        mark_weighed(row, cut)
    cuda.syncthreads()


@device
def empty(row):  # type: ignore[no-untyped-def]
    """Forget what is listed and weighed. Starts and ends with a barrier."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        forget(row)
    cuda.syncthreads()


@device
def mass_listed(row, count):  # type: ignore[no-untyped-def]
    """The mass of the tokens listed. A barrier."""
    own = np.int64(0)
    i = cuda.threadIdx.x
    while i < count:
        own += row.space.masses[i]
        i += cuda.blockDim.x
    return block_sum(row.space.sums, own)


@device
def cut_listed(row, count, wanted, counted):  # type: ignore[no-untyped-def]
    """The cut at which the tokens listed, in their order, reach `wanted` tokens (`counted`) or `wanted` mass."""
    bound = row.space.marks[BOUND]
    low = np.uint64(bound if bound != NEVER else LOWEST)
    high = np.uint64(key_of(row.top)) + np.uint64(1)
    code = find(row.space, count, low << HALF_CODE, high << HALF_CODE, wanted, counted)
    return key_in(code), np.int32(id_of(code))


@device
def is_listed(row, cut):  # type: ignore[no-untyped-def]
    """Whether all that a cut keeps has been listed, at this temperature; never of a `Band`."""
    if len(cut) == CUT:
        return cut[0] >= row.space.marks[BOUND] and same_scale(row)
    return False


@device
def find(space, count, low, high, wanted, counted):  # type: ignore[no-untyped-def]
    """The code at which the weights, in descending order of codes, reach `wanted`. A barrier.

    Args:
        space: shared memory. Of its `codes` the first `count`, with the weights `masses`, or 1 where `counted`.
        low, high: all codes are at least `low` and below `high`.
        wanted: at least 1, at most the sum of all weights.
    """
    if count <= RANKED:
        _rank(space, count, wanted, counted)
    else:
        _narrow(space, count, low, high, wanted, counted)
    cuda.syncthreads()
    return np.uint64(space.found[FOUND])


@device
def _rank(space, count, wanted, counted):  # type: ignore[no-untyped-def]
    i = cuda.threadIdx.x
    while i < count:
        code = space.codes[i]
        reached = np.int64(0)
        for j in range(count):
            if space.codes[j] >= code:
                reached += np.int64(1) if counted else space.masses[j]
        if reached - (np.int64(1) if counted else space.masses[i]) < wanted <= reached:
            space.found[FOUND] = np.int64(code)
        i += cuda.blockDim.x


@device
def _narrow(space, count, low, high, wanted, counted):  # type: ignore[no-untyped-def]
    """Narrow the interval of codes by histograms until few are listed in it; these are ranked."""
    inside = np.int64(count)
    while inside > FEW:
        shift = shift_for(low, high)
        clear_bins(space)
        i = cuda.threadIdx.x
        while i < count:
            code = space.codes[i]
            if low <= code < high:
                place = bin_in(code, low, shift)
                if counted:
                    count_in_bin(space, place)
                else:
                    add_to_bin(space, place, space.masses[i])
            i += cuda.blockDim.x
        place, wanted = pick_bin(space, wanted, counted)
        inside = number_in(space, place)
        low = first_of_bin(place, low, shift)
        high = min(high, np.uint64(low + (np.uint64(1) << shift)))
    _rank_interval(space, count, low, high, wanted, counted)


@device
def _rank_interval(space, count, low, high, wanted, counted):  # type: ignore[no-untyped-def]
    """The same among the at most FEW listed of an interval, which are copied to `bins`, codes and then weights."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        space.counters[0] = np.uint32(0)
    cuda.syncthreads()
    i = cuda.threadIdx.x
    while i < count:
        code = space.codes[i]
        if low <= code < high:
            place = np.int32(cuda.atomic.add(space.counters, 0, np.uint32(1)))
            space.bins[place] = np.int64(code)
            space.bins[FEW + place] = np.int64(1) if counted else space.masses[i]
        i += cuda.blockDim.x
    cuda.syncthreads()
    inside = np.int32(space.counters[0])
    i = cuda.threadIdx.x
    while i < inside:
        code = np.uint64(space.bins[i])
        reached = np.int64(0)
        for j in range(inside):
            if np.uint64(space.bins[j]) >= code:
                reached += space.bins[FEW + j]
        if reached - space.bins[FEW + i] < wanted <= reached:
            space.found[FOUND] = np.int64(code)
        i += cuda.blockDim.x


@device
def keep_listed(row, cut):  # type: ignore[no-untyped-def]
    """Remove from the list what a cut does not keep. A barrier.

    Returns:
        How many tokens are left, and their mass.
    """
    space = row.space
    last = code_of(cut[0], cut[1])
    count = np.int64(space.marks[COUNT])
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        space.marks[COUNT] = np.uint32(0)
    total = np.int64(0)
    start = 0
    while start < count:
        i = start + cuda.threadIdx.x
        start += cuda.blockDim.x
        code = space.codes[i] if i < count else np.uint64(0)
        weight = space.masses[i] if i < count else np.int64(0)
        cuda.syncthreads()  # all have read before one writes: what is kept moves to the front
        if code >= last:
            place = cuda.atomic.add(space.marks, COUNT, np.uint32(1))
            space.codes[place], space.masses[place] = code, weight
            total += weight
    total = block_sum(space.sums, total)
    return np.int64(space.marks[COUNT]), total
