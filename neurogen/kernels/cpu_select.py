"""Selection on the CPU: where a prefix of keys in descending order reaches a number of tokens, or a mass.

By halving the interval of keys, each time with one vectorised pass, until few are left in it; these are then compared
with each other. All in integers: no order of work changes the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_vectors import LANES, bits_between, lowest_bit

__all__ = ["select"]

FEW = 64
"""So many keys are compared each with all: that costs less than to halve their interval until one is left."""


@register_jitable
def select(keys: Any, weights: Any, count: Any, wanted: Any, counted: Any) -> Any:
    """The key at which a prefix in descending order of keys reaches `wanted`, and what lies above that key.

    Args:
        keys: uint32 [>= count].
        weights: int64 [>= count], not read where tokens are `counted`.
        wanted: at least 1, at most the sum of all weights.
        counted: every weight is 1.
    """
    least, most = _bounds(keys[:count])
    low, high = np.int64(least), np.int64(most) + 1  # the prefix ends at a key from low on and below high
    inside, number, above = np.int64(count), np.int64(0), np.int64(0)  # keys in there; keys and weight from high on
    while high - low > 1 and inside > FEW:
        middle = (low + high) >> np.int64(1)
        reached = _number_from(keys[:count], np.uint32(middle))
        weight = reached if counted else _weight_from(keys[:count], weights[:count], np.uint32(middle))
        if weight >= wanted:
            inside, low = reached - number, middle
        else:
            inside -= reached - number
            number, above, high = reached, weight, middle
    if high - low > 1:
        return _among_few(keys, weights, count, (low, high), wanted - above, counted, above)
    return np.uint32(low), above


@register_jitable
def _bounds(keys: Any) -> Any:
    least, most = keys[0], keys[0]
    for i in range(len(keys)):
        least = min(least, keys[i])
        most = max(most, keys[i])
    return least, most


@register_jitable
def _number_from(keys: Any, key: Any) -> Any:
    total = np.int32(0)
    for i in range(len(keys)):
        total = np.int32(total + np.int32(keys[i] >= key))
    return np.int64(total)


@register_jitable
def _weight_from(keys: Any, weights: Any, key: Any) -> Any:
    total = np.int64(0)
    for i in range(len(keys)):
        total += weights[i] if keys[i] >= key else np.int64(0)
    return total


@register_jitable
def _among_few(keys: Any, weights: Any, count: Any, interval: Any, wanted: Any, counted: Any, above: Any) -> Any:
    """`select` among the keys of an interval, at most FEW, that is known to hold `wanted`."""
    low, width = np.uint32(interval[0]), np.uint32(interval[1] - interval[0])
    few, own = np.empty(FEW + 1, np.uint32), np.empty(FEW + 1, np.int64)
    inside = np.int64(0)
    for start in range(0, count, LANES):
        bits = bits_between(keys, start, count, low, np.uint32(width - np.uint32(1)))
        while bits != 0:
            i = start + lowest_bit(bits)
            few[inside], own[inside] = keys[i], np.int64(1) if counted else weights[i]
            inside += 1
            bits &= bits - np.uint64(1)
    best, before = np.uint32(0), np.int64(0)
    for i in range(inside):
        from_here = _weight_from(few[:inside], own[:inside], few[i])
        if from_here >= wanted and few[i] >= best:
            best, before = few[i], from_here
    for i in range(inside):
        before -= own[i] if few[i] == best else np.int64(0)
    return best, above + before
