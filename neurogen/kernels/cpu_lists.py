"""Lists of the tokens of a row on the CPU whose logit reaches a threshold, in order of their ids.

collect         reads the chunks that hold such a logit
list_reached    from the bits that a pass over the row has noted, see `cpu_rough`
weigh_listed    the masses of what is listed, exactly
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_rows import CHUNK, load_chunk, mass_at, rank_from, rank_of, sum_of
from neurogen.kernels.cpu_vectors import LANES, at_least, bits_between, bits_not_zero, count_bits, load, lowest_bit
from neurogen.kernels.numerics import key_of, mass_of, to_float32, value_of

__all__ = ["collect", "list_reached", "weigh_kept", "weigh_listed"]

AT_ONCE = 4
LAST_RANK = np.uint32(0xFFFFFFFF)


@register_jitable
def _list_lanes(bits: Any, first: Any, ids: Any, count: Any) -> Any:
    """List of 64 tokens from the id `first` on those whose bit is set; return how many are listed then.

    Mostly a few are. Whether there is a next one could not be predicted, so AT_ONCE are written in any case, and what
    is too much is written over.
    """
    number = count_bits(bits)
    for place in range(AT_ONCE):
        ids[count + place] = first + lowest_bit(bits)
        bits &= bits - np.uint64(1)
    place = count + AT_ONCE
    while bits != 0:
        ids[place] = first + lowest_bit(bits)
        bits &= bits - np.uint64(1)
        place += 1
    return count + number


@register_jitable
def collect(row: Any, threshold: Any, ties: Any) -> Any:
    """List the tokens whose logit is at least a float32, in order of their ids, with keys; return how many.

    Subnormal logits may be taken for 0, so a few may be listed that lie below the threshold: whoever cuts compares
    keys.

    Args:
        row: scanned.
        threshold: float32.
        ties: when so many tokens equal to the threshold are listed, chunks that hold nothing above it are passed over.
    """
    rank = rank_from(threshold)
    above = max(rank, rank_of(value_of(key_of(threshold)))) + np.uint32(1)  # than +0 for either zero
    key = key_of(threshold)
    count, tied, seen = np.int64(0), np.int64(0), np.int64(0)
    whole = len(row.logits) // CHUNK
    for first in range(0, whole, LANES):
        chunks = bits_between(row.maxima, first, whole, rank, np.uint32(LAST_RANK - rank))
        while chunks != 0:
            c = first + lowest_bit(chunks)
            chunks &= chunks - np.uint64(1)
            if row.maxima[c] >= rank:  # which may have risen meanwhile
                for start in range(c * CHUNK, c * CHUNK + CHUNK, LANES):
                    bits = at_least(load(row.logits, start), threshold)
                    count = _list_lanes(bits, start, row.ids, count)
                if ties < len(row.logits):
                    while seen < count:
                        tied += np.int64(key_of(to_float32(row.logits[row.ids[seen]])) == key)
                        seen += 1
                    rank = above if tied >= ties else rank
    return _finish_list(row, threshold, count)


@register_jitable
def list_reached(row: Any, threshold: Any) -> Any:
    """As `collect`, where `row.reached` tells which logits of whole chunks reach the threshold."""
    count = np.int64(0)
    words = len(row.logits) // CHUNK * CHUNK // LANES
    for first in range(0, words, LANES):
        some = bits_not_zero(row.reached, first, words)
        while some != 0:
            j = first + lowest_bit(some)
            some &= some - np.uint64(1)
            count = _list_lanes(row.reached[j], j * LANES, row.ids, count)
    return _finish_list(row, threshold, count)


@register_jitable
def _finish_list(row: Any, threshold: Any, count: Any) -> Any:
    """List what is left behind the last whole chunk, without what it is filled up with; and note all keys."""
    behind = len(row.logits) // CHUNK * CHUNK
    if behind < len(row.logits):
        load_chunk(row.logits, behind, row.scratch)
        for start in range(0, CHUNK, LANES):
            bits = at_least(load(row.scratch, start), threshold)
            count = _list_lanes(bits, behind + start, row.ids, count)
        while count > 0 and row.ids[count - 1] >= len(row.logits):
            count -= 1
    for i in range(count):
        row.keys[i] = key_of(to_float32(row.logits[row.ids[i]]))
    return count


@register_jitable
def weigh_listed(row: Any, count: Any) -> Any:
    """Note the masses of the tokens listed; return their sum."""
    row.weighed[0] = row.scale
    for i in range(count):
        row.masses[i] = mass_of(value_of(row.keys[i]), row.top, row.scale, row.bits)
    return sum_of(row.masses[:count])


@register_jitable
def weigh_kept(row: Any, kept: Any) -> Any:
    """The mass of the tokens kept, of which `ids` and `masses` are listed; these are made anew for another scale."""
    if row.weighed[0] != row.scale:
        row.weighed[0] = row.scale
        for i in range(kept):
            row.masses[i] = mass_at(row, row.ids[i])
    return sum_of(row.masses[:kept])
