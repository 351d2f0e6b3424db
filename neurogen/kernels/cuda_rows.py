"""A row of logits on CUDA, read by one block of threads; what is found of it stands in shared memory.

A row is cut into PARTS runs of ids, and a part is read by one warp, four logits a thread at a time and four such reads
in flight. So a part has its ids in order, and the sums of parts say where in the row a number lies:

    part       0                               1                       ...   a warp each
    lane       0     1     2   ...  31     0   1   ...                       four logits each, 128 logits a warp
    row      x[0:4] x[4:8]  ...  x[124:128] ...                              float32, or the bits of a half

    at_row       reads the row once: the largest logit, of the row and of each of PARTS * WARP groups
    first_top    reads the threads' runs that hold it again
    argmax_of    reads the row once, and keeps the id too
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_block import (
    WARP,
    block_largest,
    device,
    four_at,
    lane_of,
    logit_of,
    warp_of,
    warps,
)
from neurogen.kernels.numerics import (
    NEGATIVE_INFINITY,
    is_valid,
    is_warm,
    key_of,
    mass_bits,
    scale_of,
    value_of,
)

__all__ = [
    "BINS",
    "BOUND",
    "COUNT",
    "FOUND",
    "GROUPS",
    "INVALID",
    "LISTED",
    "LOWEST",
    "NEVER",
    "NOTHING",
    "PARTS",
    "SCALE",
    "UNKNOWN",
    "WEIGHED_ID",
    "WEIGHED_KEY",
    "Row",
    "Space",
    "argmax_of",
    "at_row",
    "clear",
    "first_id",
    "first_top",
    "forget",
    "id_of_rank",
    "largest_rank",
    "logit_at",
    "open_space",
    "place_of",
    "read_top",
    "reader",
    "same_scale",
    "slice_reader",
    "unread_row",
]

PARTS = 32
LISTED = 2048
"""Tokens that can be listed in shared memory, 16 bytes each; as many bins has a histogram there."""
PART_BITS = PARTS.bit_length() - 1
GROUPS = PARTS * WARP
BINS = 256
"""Bins of a histogram over an interval of keys or codes, see `cuda_bins`."""

NOTHING = NEGATIVE_INFINITY
"""The largest logit of a row without a valid distribution."""

LOWEST = np.uint32(0x80000000 - 0x7F7FFFFF)
"""The key of the lowest finite logit."""
NEVER = np.uint32(0xFFFFFFFF)
"""Above all keys."""
ID_BITS = np.int64(31)
LAST_OF_31 = np.int64(0x7FFFFFFF)

COUNT, BOUND, WEIGHED_KEY, WEIGHED_ID, SCALE = range(5)  # places in `marks`
FOUND = 0  # a place in `found`
UNKNOWN = np.int64(-1)


class Space(NamedTuple):
    """The shared memory of a block.

    Attributes:
        codes: uint64 [LISTED], the tokens listed: see `code_of`.
        masses: int64 [LISTED], theirs; or a histogram.
        maxima: uint32 [GROUPS], the key of the largest logit of each group of tokens.
        parts: int64 [PARTS], the weight of each part.
        sums: int64 [WARP], for reductions.
        found: int64 [2], what one thread tells the others.
        bins: int64 [BINS], weights of a histogram.
        counters: uint32 [BINS], how many numbers fell into each.
        marks: uint32 [5]: tokens listed (more than LISTED: that did not fit), and the key from which on all are; the
            key and the id of a cut: `parts` holds the masses of what it keeps; NEVER where there is no such key; and
            the bits of the scale with which the masses of both were made.
    """

    codes: Any
    masses: Any
    maxima: Any
    parts: Any
    sums: Any
    found: Any
    bins: Any
    counters: Any
    marks: Any


class Row(NamedTuple):
    """One row, as `largest`, `nucleus` and their like take it.

    Attributes:
        logits: all logits of the batch as stored: float32, uint16 (bfloat16) or int16 (float16).
        start: where in them the row begins.
        vocab: int32.
        head: logits before the first that stands at a multiple of four logits in memory, at most three.
        top: the largest logit, float32, or `NOTHING`.
        scale: `scale_of(temperature)`; 1 at temperature 0.
        bits: `mass_bits(vocab)`.
        space: shared memory.
        total: the mass of the row where several blocks have found it and all tokens from a key on are listed, see
            `cuda_split`; else UNKNOWN.
    """

    logits: Any
    start: Any
    vocab: Any
    head: Any
    top: Any
    scale: Any
    bits: Any
    space: Any
    total: Any


@device
def open_space():  # type: ignore[no-untyped-def]
    """The shared memory of a block; once in a kernel."""
    codes = cuda.shared.array(LISTED, np.uint64)
    masses = cuda.shared.array(LISTED, np.int64)
    maxima = cuda.shared.array(GROUPS, np.uint32)
    parts = cuda.shared.array(PARTS, np.int64)
    sums = cuda.shared.array(WARP, np.int64)
    found = cuda.shared.array(2, np.int64)
    bins = cuda.shared.array(BINS, np.int64)
    counters = cuda.shared.array(BINS, np.uint32)
    marks = cuda.shared.array(5, np.uint32)
    return Space(codes, masses, maxima, parts, sums, found, bins, counters, marks)


# Reading.


@device
def logit_at(row, i):  # type: ignore[no-untyped-def]
    """The logit of a token as float32."""
    return logit_of(row.logits[row.start + i])


@device
def clear(values, count):  # type: ignore[no-untyped-def]
    """Set the first `count` of a shared int64 array to 0. No barrier."""
    i = cuda.threadIdx.x
    while i < count:
        values[i] = np.int64(0)
        i += cuda.blockDim.x


@device
def forget(row):  # type: ignore[no-untyped-def]
    """Nothing is listed, and no masses of parts are known; what comes is of this row. By one thread; no barrier."""
    marks = row.space.marks
    marks[COUNT], marks[BOUND], marks[WEIGHED_KEY] = np.uint32(0), NEVER, NEVER
    marks[SCALE] = row.scale.view(np.uint32)


@device
def same_scale(row):  # type: ignore[no-untyped-def]
    """Whether what is listed and weighed was so at the temperature of this row."""
    return row.space.marks[SCALE] == row.scale.view(np.uint32)


@device
def _slots(row):  # type: ignore[no-untyped-def]
    """Whole groups of four logits that stand at multiples of four in memory, in a row and in a part of it."""
    whole = np.int32(np.int32(row.vocab - row.head) >> 2)
    return whole, np.int32(np.int32(whole + PARTS - 1) >> PART_BITS)


@device
def first_id(row, part):  # type: ignore[no-untyped-def]
    """The first id of a part; that of part PARTS is the vocab."""
    whole, each = _slots(row)
    if part == 0:
        return np.int32(0)
    if part == PARTS:
        return row.vocab
    return np.int32(row.head + 4 * min(np.int32(part * each), whole))


def reader(
    fold: Callable[..., Any], fold_four: Callable[..., Any] | None = None, in_flight: int = 1, *, ahead: bool = False
) -> Any:
    """A device function read(row, part, state) that folds the logits of a part, as one warp shares them.

    Args: see `slice_reader`.
    """
    read_slice = slice_reader(fold, fold_four, in_flight, ahead=ahead)

    @device
    def read(row, part, state):  # type: ignore[no-untyped-def]
        return read_slice(row, part, np.int32(0), np.int32(0), state)

    return read


def slice_reader(
    fold: Callable[..., Any], fold_four: Callable[..., Any] | None = None, in_flight: int = 1, *, ahead: bool = False
) -> Any:
    """A device function read(row, part, number, halvings, state): one of 2**halvings slices of a part, a warp each.

    A slice begins at a whole number of reads of a warp, so that a logit falls to the same lane however a part is cut.

    Args:
        fold: called as fold(row, state, x, i) with float32 logits in order of their ids within each thread; returns
            the next state, of the same types. The id i is an int32.
        fold_four: the same for four logits at once, fold_four(row, state, a, b, c, d, i).
        in_flight: 4 to have four reads of four logits under way at once, for a fold that is short.
        ahead: have the next read under way while one is folded, for a fold that is too long to be there often.
    """
    folded = device(fold)

    def each_of_four(row, state, a, b, c, d, i):  # type: ignore[no-untyped-def]
        state = folded(row, state, a, i)
        state = folded(row, state, b, np.int32(i + 1))
        state = folded(row, state, c, np.int32(i + 2))
        return folded(row, state, d, np.int32(i + 3))

    folded_four = device(fold_four or each_of_four)

    @device
    def fold_stored(row, state, four, i):  # type: ignore[no-untyped-def]
        a, b, c, d = four
        return folded_four(row, state, logit_of(a), logit_of(b), logit_of(c), logit_of(d), np.int32(i))

    @device
    def four_before(row, i, stop, instead):  # type: ignore[no-untyped-def]
        return four_at(row.logits, row.start + (i if i < stop else instead))

    @device
    def read_ahead(row, state, i, stop):  # type: ignore[no-untyped-def]
        if i >= stop:
            return state
        four = four_before(row, i, stop, i)
        while i < stop:
            following = four_before(row, np.int32(i + 4 * WARP), stop, i)
            state = fold_stored(row, state, four, i)
            four = following
            i = np.int32(i + 4 * WARP)
        return state

    @device
    def read_slice(row, part, number, halvings, state):  # type: ignore[no-untyped-def]
        whole, each = _slots(row)
        if part == 0 and number == 0 and lane_of() < row.head:
            state = folded(row, state, logit_at(row, lane_of()), np.int32(lane_of()))
        first, last = np.int32(part * each), min(np.int32((part + 1) * each), whole)
        if halvings > 0:
            own = np.int32(((each + (WARP << halvings) - 1) >> halvings) // WARP * WARP)
            first = np.int32(first + number * own)
            last = min(np.int32(first + own), last)
        i = np.int32(row.head + 4 * (first + lane_of()))
        stop = np.int32(row.head + 4 * last)
        if in_flight == 4:
            while np.int32(i + 12 * WARP) < stop:
                at = row.start + i
                first, second = four_at(row.logits, at), four_at(row.logits, at + 4 * WARP)
                third, fourth = four_at(row.logits, at + 8 * WARP), four_at(row.logits, at + 12 * WARP)
                state = fold_stored(row, state, first, i)
                state = fold_stored(row, state, second, i + 4 * WARP)
                state = fold_stored(row, state, third, i + 8 * WARP)
                state = fold_stored(row, state, fourth, i + 12 * WARP)
                i = np.int32(i + 16 * WARP)
        if ahead:
            state = read_ahead(row, state, i, stop)
        else:
            while i < stop:
                state = fold_stored(row, state, four_at(row.logits, row.start + i), i)
                i = np.int32(i + 4 * WARP)
        i = np.int32(row.head + 4 * whole + lane_of())
        if part == PARTS - 1 and number == 0 and i < row.vocab:
            state = folded(row, state, logit_at(row, i), i)
        return state

    return read_slice


def _top(row, state, x, i):  # type: ignore[no-untyped-def]
    """The largest logit, and whether all are valid."""
    best, valid = state
    return max(best, x), valid and is_valid(x)


read_top = slice_reader(_top, in_flight=4)


@device
def unread_row(logits, offset, start, vocab, temperature, space):  # type: ignore[no-untyped-def]
    """A row that has not been read."""
    vocab = np.int32(vocab)
    head = min(np.int32(-(offset + start) & 3), vocab)
    scale = scale_of(temperature) if is_warm(temperature) else np.float32(1.0)
    return Row(logits, np.int64(start), vocab, head, NOTHING, scale, np.int32(mass_bits(vocab)), space, UNKNOWN)


@device
def at_row(logits, offset, start, vocab, temperature, space):  # type: ignore[no-untyped-def]
    """The row that begins at logits[start], and its largest logit. Reads it once.

    Args:
        offset: where logits[0] stands in memory, modulo four logits.
    """
    row = unread_row(logits, offset, start, vocab, temperature, space)
    own, valid = NOTHING, True
    part = warp_of()
    while part < PARTS:
        best, valid = read_top(row, part, np.int32(0), np.int32(0), (NOTHING, valid))
        space.maxima[part * WARP + lane_of()] = key_of(best)
        own = max(own, best)
        part += warps()
    key = block_largest(space.sums, np.int64(key_of(own)))
    if cuda.threadIdx.x == 0:
        forget(row)
    top = value_of(np.uint32(key)) if cuda.syncthreads_and(np.int32(valid)) else NOTHING
    return Row(row.logits, row.start, row.vocab, row.head, top, row.scale, row.bits, space, UNKNOWN)


@reader
def _read_first(row, state, x, i):  # type: ignore[no-untyped-def]
    """The first id of the largest logit."""
    return min(state, i) if x == row.top else state


@device
def first_top(row):  # type: ignore[no-untyped-def]
    """The lowest id of the largest logit. Reads the parts that hold it."""
    key = key_of(row.top)
    own = row.vocab
    part = warp_of()
    while part < PARTS:
        if row.space.maxima[part * WARP + lane_of()] == key:
            own = _read_first(row, part, own)
        part += warps()
    return row.vocab - block_largest(row.space.sums, np.int64(row.vocab - own))


def _argmax(row, state, x, i):  # type: ignore[no-untyped-def]
    """The largest logit, its first id, and whether all logits are valid."""
    best, first, valid = state
    larger = x > best
    return x if larger else best, i if larger else first, valid and is_valid(x)


_read_argmax = slice_reader(_argmax, in_flight=4)
INVALID = np.int64(-1)


@device
def argmax_of(logits, offset, start, vocab, space):  # type: ignore[no-untyped-def]
    """The lowest id of the largest logit; -1 in a row without a valid distribution. Reads the row once."""
    return id_of_rank(largest_rank(logits, offset, start, vocab, np.int32(0), np.int32(0), space))


@device
def largest_rank(logits, offset, start, vocab, piece, halvings, space):  # type: ignore[no-untyped-def]
    """The largest of the ranks of one of 2**halvings pieces of a row, INVALID where one is not valid. Reads that once.

    A rank is the key counted from that of -inf, and then the id, the lower the better: 31 bits each, or one more. 0 of
    a piece that has only -inf.
    """
    row = unread_row(logits, offset, start, vocab, np.float64(0.0), space)
    state = (NOTHING, np.int32(-1), True)
    unit = warp_of()
    while unit < PARTS:
        part, number = place_of(unit, piece, halvings)
        state = _read_argmax(row, part, number, halvings, state)
        unit += warps()
    best, first, valid = state
    rank = (np.int64(key_of(best)) - np.int64(LOWEST) + 1) << ID_BITS | (LAST_OF_31 - np.int64(first))
    rank = block_largest(space.sums, rank if first >= 0 else np.int64(0))
    return rank if cuda.syncthreads_and(np.int32(valid)) else INVALID


@device
def id_of_rank(rank):  # type: ignore[no-untyped-def]
    """The id in a rank; -1 of a row without a valid distribution."""
    return LAST_OF_31 - (rank & LAST_OF_31) if rank > 0 else np.int64(-1)


@device
def place_of(unit, piece, halvings):  # type: ignore[no-untyped-def]
    """The part, and the slice of it, that a warp reads as its `unit`-th of PARTS, in a piece of 2**halvings."""
    part = np.int32((piece << PART_BITS >> halvings) + (unit >> halvings))
    return part, np.int32(unit & ((1 << halvings) - 1))
