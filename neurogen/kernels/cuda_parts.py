"""Where in a row of logits, in order of ids, masses or tokens reach a number, on CUDA; and the bins of a histogram.

A *cut* is where a truncation ends: the key of the last token kept, and the last id kept among those with that key. What
is not a prefix of the order of tokens is a `Band`.

    part_weights    reads the row once: the mass (or number) of the tokens kept, of every part and of the row
    locate          reads one part again, with all threads
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_block import block_before, block_sum, device, lane_of, mass, warp_of, warp_sum, warps
from neurogen.kernels.cuda_rows import (
    FOUND,
    LISTED,
    NEVER,
    PARTS,
    WEIGHED_ID,
    WEIGHED_KEY,
    first_id,
    logit_at,
    reader,
    same_scale,
)
from neurogen.kernels.numerics import NEGATIVE_INFINITY, key_of

__all__ = [
    "CUT",
    "Band",
    "bin_of",
    "locate",
    "mark_weighed",
    "part_weights",
    "share_of",
    "sum_of_parts",
    "survives",
]

CUT = 2  # the key of a prefix's last token, and its id


class Band(NamedTuple):
    """Tokens kept that are not a prefix of the order of tokens: those between two keys, and some at its ends.

    Attributes:
        low, high: uint32; all tokens with a key of low .. high are kept.
        upper: uint32, not below `high`; of the keys above `high` up to this one the ids `first` .. `last` are kept.
        first, last: int32.
        lower: uint32, not above `low`; of the keys below `low` from this one on the ids up to `lower_last` are kept.
        lower_last: int32.
    """

    low: Any
    high: Any
    upper: Any
    first: Any
    last: Any
    lower: Any
    lower_last: Any


@device
def bin_of(x, top, inverse, key, shift):  # type: ignore[no-untyped-def]
    """The bin of LISTED that a logit goes to, the largest logits to bin 0; -1 if it goes to none, as -inf does.

    Over logits where `inverse`, the bins per logit, is above 0: all from some distance to the top go to the last bin.
    Else over one digit of the key, from the bit `shift` upwards, for those that agree with `key` above that digit.
    """
    if x == NEGATIVE_INFINITY:
        return np.int32(-1)
    if inverse > 0:
        distance = np.float32(np.float32(top - x) * inverse)
        return np.int32(distance) if distance < LISTED - 1 else np.int32(LISTED - 1)
    digit = np.uint32(np.uint32(key_of(x) >> shift) - np.uint32(key >> shift))
    return np.int32(LISTED - 1 - np.int32(digit)) if digit < LISTED else np.int32(-1)


@device
def share_of(count):  # type: ignore[no-untyped-def]
    """So many of `count` for each thread that all are reached: a power of two, since a division takes registers."""
    each = 1
    while each * cuda.blockDim.x < count:
        each *= 2
    return each


@device
def survives(x, i, cut):  # type: ignore[no-untyped-def]
    """Whether a token is kept: above the cut, or at its key and not after its last id; or in a `Band`."""
    key = key_of(x)
    if len(cut) != CUT:
        inside = cut.low <= key <= cut.high
        above = cut.high < key <= cut.upper and cut.first <= i <= cut.last
        return inside or above or (cut.lower <= key < cut.low and i <= cut.lower_last)
    return key > cut[0] or (key == cut[0] and i <= cut[1])


@device
def _weight(row, cut, count, x, i):  # type: ignore[no-untyped-def]
    """The mass of a token that a cut keeps; or, to count, 1 for a token at the key of the cut."""
    if count:
        return np.int64(1) if key_of(x) == cut[0] else np.int64(0)
    return mass(x, row.top, row.scale, row.bits) if survives(x, i, cut) else np.int64(0)


def _weights(row, state, x, i):  # type: ignore[no-untyped-def]
    cut, count, total = state
    return cut, count, total + _weight(row, cut, count, x, i)


_read_weights = reader(_weights)


@device
def _is_weighed(row, cut):  # type: ignore[no-untyped-def]
    marks = row.space.marks
    if len(cut) == CUT:
        return marks[WEIGHED_KEY] == cut[0] and marks[WEIGHED_ID] == np.uint32(cut[1]) and same_scale(row)
    return False


@device
def mark_weighed(row, cut):  # type: ignore[no-untyped-def]
    """Note that `parts` holds the masses of what this cut keeps. By one thread; no barrier."""
    row.space.marks[WEIGHED_KEY], row.space.marks[WEIGHED_ID] = cut[0], np.uint32(cut[1])


@device
def sum_of_parts(space):  # type: ignore[no-untyped-def]
    """The sum of `parts`. A barrier."""
    own = np.int64(0)
    i = cuda.threadIdx.x
    while i < PARTS:
        own += space.parts[i]
        i += cuda.blockDim.x
    return block_sum(space.sums, own)


@device
def part_weights(row, cut, count):  # type: ignore[no-untyped-def]
    """The weight (see `_weight`) of every part, in `parts`, and of the row. Reads the row once, or not if known."""
    if not count and _is_weighed(row, cut):
        return sum_of_parts(row.space)
    own = np.int64(0)
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        row.space.marks[WEIGHED_KEY] = NEVER
    part = warp_of()
    while part < PARTS:
        _, _, weight = _read_weights(row, part, (cut, count, np.int64(0)))
        weight = warp_sum(weight)
        if lane_of() == 0:
            row.space.parts[part] = weight
            own += weight
        part += warps()
    return block_sum(row.space.sums, own)


@device
def locate(row, cut, count, wanted):  # type: ignore[no-untyped-def]
    """The first id at which the weights, in order of ids, reach `wanted`: at least 1 and at most that of the row.

    After `part_weights`. Reads one part of the row again: a run of ids a thread, and the thread in whose run it is
    goes through that a second time.
    """
    space = row.space
    part = 0
    while part < PARTS - 1 and wanted > space.parts[part]:
        wanted -= space.parts[part]
        part += 1
    first, last = first_id(row, part), first_id(row, part + 1)
    each = share_of(last - first)
    first = np.int32(min(first + cuda.threadIdx.x * each, last))
    last = np.int32(min(first + each, last))
    own = np.int64(0)
    i = first
    while i < last:
        own += _weight(row, cut, count, logit_at(row, i), i)
        i = np.int32(i + 1)
    wanted -= block_before(space.sums, own)
    if 0 < wanted <= own:
        i = first
        while i < last - 1:
            wanted -= _weight(row, cut, count, logit_at(row, i), i)
            if wanted <= 0:
                break
            i = np.int32(i + 1)
        space.found[FOUND] = np.int64(i)
    cuda.syncthreads()
    return space.found[FOUND]
