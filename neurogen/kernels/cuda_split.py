"""Rows split over several blocks on CUDA, for batches that are too small to fill a card with a block a row.

Two launches. No block ever waits for another one, so nothing can hang, whatever else runs on the card:

    survey            every block reads its piece of a row: the largest logits of its groups go to the workspace
    surveyed_row      every block takes these, which is all that `at_row` finds
    weigh_piece       and reads its piece again: masses of parts, and the tokens listed, go to the workspace
    gathered_row      the block that is the last of its row to get there takes all of it, and goes on alone

What the last block takes is exactly what one block finds that does all of the row, so the token is the same.

Memory: a block writes, every thread of it passes a fence, and then one thread counts the block as done, atomically. Who
counts last knows that all others wrote before. It reads what they wrote by adding 0 atomically, which is done where all
multiprocessors see it, and not in a cache of its own.

On an H200 all of this is slower than one block a row, except for an argmax of very long rows within a CUDA graph and a
nucleus that fits the list; so it is done on demand (docs/cuda.md has the figures).
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_block import (
    WARP,
    add_at,
    block_largest,
    device,
    lane_of,
    warp_of,
    warp_sum,
    warps,
)
from neurogen.kernels.cuda_cuts import AIM, nth_maximum
from neurogen.kernels.cuda_list import empty, read_weighed_slice, weigh_listed
from neurogen.kernels.cuda_parts import mark_weighed, sum_of_parts
from neurogen.kernels.cuda_rows import (
    BOUND,
    COUNT,
    FOUND,
    GROUPS,
    INVALID,
    LISTED,
    LOWEST,
    NEVER,
    NOTHING,
    PARTS,
    UNKNOWN,
    Row,
    id_of_rank,
    largest_rank,
    place_of,
    read_top,
    unread_row,
)
from neurogen.kernels.numerics import key_of, value_of

__all__ = [
    "MOST_PIECES",
    "RANKS",
    "argmax_of_ranks",
    "gathered_row",
    "note_rank",
    "row_and_piece",
    "survey",
    "surveyed_row",
    "weigh_piece",
    "words_a_row",
]

MOST_PIECES = 16

LINE = 16
"""Words of 64 bits in two lines of the cache. The sections of a workspace begin at multiples of it."""
COUNTED, DONE = 0, 1
RANKS = MOST_PIECES
"""Words a row of the workspace of an argmax."""


# The workspace of a row: codes [LISTED], weights of parts [PARTS], counters [LINE], maxima of groups [GROUPS]; int64.


def words_a_row() -> int:
    """Words of 64 bits that `survey` and what follows it need of a workspace for each row."""
    return LISTED + PARTS + LINE + GROUPS


@device
def _base(r):  # type: ignore[no-untyped-def]
    return np.int64(r) * (LISTED + PARTS + LINE + GROUPS)


@device
def _weights_at(r):  # type: ignore[no-untyped-def]
    return _base(r) + LISTED


@device
def _counters_at(r):  # type: ignore[no-untyped-def]
    return _base(r) + (LISTED + PARTS)


@device
def _maxima_at(r):  # type: ignore[no-untyped-def]
    return _base(r) + (LISTED + PARTS + LINE)


@device
def row_and_piece(batch):  # type: ignore[no-untyped-def]
    """The row of this block, its piece of it, and that 2**halvings pieces make a row: a launch has as many blocks."""
    halvings = np.int32(0)
    while np.int64(batch) << (halvings + 1) <= cuda.gridDim.x:
        halvings += 1
    return np.int64(cuda.blockIdx.x >> halvings), np.int32(cuda.blockIdx.x & ((1 << halvings) - 1)), halvings


# The first launch.


@device
def survey(logits, offset, row_stride, vocab, batch, workspace, space):  # type: ignore[no-untyped-def]
    """Note the maxima of the groups of one piece: NEVER where a logit of it is not valid. Reads the piece once."""
    r, piece, halvings = row_and_piece(batch)
    row = unread_row(logits, offset, r * row_stride, vocab, np.float64(0.0), space)
    valid = True
    unit = warp_of()
    while unit < PARTS:
        part, number = place_of(unit, piece, halvings)
        best, valid = read_top(row, part, number, halvings, (NOTHING, valid))
        space.maxima[unit * WARP + lane_of()] = key_of(best)
        unit += warps()
    all_valid = cuda.syncthreads_and(np.int32(valid))
    own = GROUPS >> halvings
    i = cuda.threadIdx.x
    while i < own:
        first = (i // WARP << halvings) * WARP + i % WARP
        key = np.uint32(0)
        for number in range(1 << halvings):
            key = max(key, space.maxima[first + number * WARP])
        workspace[_maxima_at(r) + piece * own + i] = np.int64(key if all_valid else NEVER)
        i += cuda.blockDim.x
    if piece == 0 and cuda.threadIdx.x < LINE:
        workspace[_counters_at(r) + cuda.threadIdx.x] = np.int64(0)


# The second launch.


@device
def surveyed_row(logits, offset, row_stride, vocab, temperature, r, workspace, space):  # type: ignore[no-untyped-def]
    """A row as `at_row` finds it, from what has been surveyed."""
    row = unread_row(logits, offset, r * row_stride, vocab, temperature, space)
    own = np.int64(0)
    i = cuda.threadIdx.x
    while i < GROUPS:
        key = workspace[_maxima_at(r) + i]
        space.maxima[i] = np.uint32(key)
        own = max(own, key)
        i += cuda.blockDim.x
    key = np.uint32(block_largest(space.sums, own))
    top = value_of(key) if key != NEVER else NOTHING
    return Row(row.logits, row.start, row.vocab, row.head, top, row.scale, row.bits, space, UNKNOWN)


@device
def weigh_piece(row, r, piece, halvings, workspace):  # type: ignore[no-untyped-def]
    """Note the masses of the parts of a piece, and its tokens from a key on. Reads the piece once. A barrier.

    Returns:
        Whether this was the last block of the row, and the key.
    """
    bound = LOWEST
    if row.top != NOTHING:
        bound = max(nth_maximum(row, np.int64(AIM)), LOWEST)
        _weigh_and_list(row, bound, piece, halvings)
        _write_piece(row.space, r, piece, halvings, workspace)
    cuda.threadfence()
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        row.space.found[FOUND] = add_at(workspace, _counters_at(r) + DONE, np.int64(1))
    cuda.syncthreads()
    return row.space.found[FOUND] == (1 << halvings) - 1, bound


@device
def _weigh_and_list(row, bound, piece, halvings):  # type: ignore[no-untyped-def]
    """The masses that the warps have read, in `masses`, and the list of this block. Ends with a barrier."""
    empty(row)
    lowest = value_of(bound)
    unit = warp_of()
    while unit < PARTS:
        part, number = place_of(unit, piece, halvings)
        _, weight = read_weighed_slice(row, part, number, halvings, (lowest, np.int64(0)))
        weight = warp_sum(weight)
        if lane_of() == 0:
            row.space.masses[unit] = weight
        unit += warps()
    cuda.syncthreads()


@device
def _write_piece(space, r, piece, halvings, workspace):  # type: ignore[no-untyped-def]
    own = PARTS >> halvings
    part = cuda.threadIdx.x
    while part < own:
        weight = np.int64(0)
        for number in range(1 << halvings):
            weight += space.masses[(part << halvings) + number]
        workspace[_weights_at(r) + piece * own + part] = weight
        part += cuda.blockDim.x
    count = np.int64(space.marks[COUNT])
    if cuda.threadIdx.x == 0:
        space.found[FOUND] = add_at(workspace, _counters_at(r) + COUNTED, count)
    cuda.syncthreads()
    first = space.found[FOUND]
    i = cuda.threadIdx.x
    while i < count and i < LISTED and first + i < LISTED:
        workspace[_base(r) + first + i] = np.int64(space.codes[i])
        i += cuda.blockDim.x


@device
def gathered_row(row, bound, r, workspace):  # type: ignore[no-untyped-def]
    """The row with its mass, those of its parts, and a list of all tokens from a key on. Ends with a barrier."""
    space = row.space
    cuda.threadfence()
    i = cuda.threadIdx.x
    while i < PARTS:
        space.parts[i] = add_at(workspace, _weights_at(r) + i, np.int64(0))
        i += cuda.blockDim.x
    total = sum_of_parts(space)
    if cuda.threadIdx.x == 0:
        space.found[FOUND] = add_at(workspace, _counters_at(r) + COUNTED, np.int64(0))
    cuda.syncthreads()
    count = space.found[FOUND]
    fits = count <= LISTED
    i = cuda.threadIdx.x
    while fits and i < count:
        space.codes[i] = np.uint64(add_at(workspace, _base(r) + i, np.int64(0)))
        i += cuda.blockDim.x
    if cuda.threadIdx.x == 0:
        space.marks[COUNT] = np.uint32(count if fits else LISTED + 1)
        space.marks[BOUND] = bound if fits else NEVER
        mark_weighed(row, (LOWEST, row.vocab))
    cuda.syncthreads()
    if fits:
        weigh_listed(row, count)
    cuda.syncthreads()
    return Row(row.logits, row.start, row.vocab, row.head, row.top, row.scale, row.bits, space, total)


# The argmax.


@device
def note_rank(logits, offset, row_stride, vocab, batch, workspace, space):  # type: ignore[no-untyped-def]
    """Note the largest rank of a piece. Reads it once."""
    r, piece, halvings = row_and_piece(batch)
    rank = largest_rank(logits, offset, r * row_stride, vocab, piece, halvings, space)
    if cuda.threadIdx.x == 0:
        workspace[r * RANKS + piece] = rank


@device
def argmax_of_ranks(r, halvings, workspace, space):  # type: ignore[no-untyped-def]
    """The id of the largest of the ranks of a row; -1 where a piece is not valid. A barrier."""
    rank = np.int64(0)
    if cuda.threadIdx.x < 1 << halvings:
        rank = workspace[r * RANKS + cuda.threadIdx.x]
    valid = cuda.syncthreads_and(np.int32(rank != INVALID))
    largest = block_largest(space.sums, max(rank, np.int64(0)))
    return id_of_rank(largest) if valid else np.int64(-1)
