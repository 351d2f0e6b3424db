"""Cross-entropy, its gradient and what a row of softmax tells about a model, in three reads of a cached row (CPU).

Floating point, unlike the samplers' integer masses: a loss need not choose the same token everywhere. Each row is
worked on by one thread in one order, so that results do not depend on the number of threads.

Functions marked REASSOCIATE may add in another order than written, which is what lets LLVM vectorise a sum; the
exponential must not be among them, since it rounds by adding and subtracting a large number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload, register_jitable
from torch import Tensor

from neurogen.kernels.cpu import kernel_with, next_row, run
from neurogen.kernels.numerics import (
    EXP2_1,
    EXP2_2,
    EXP2_3,
    EXP2_4,
    EXP2_5,
    EXP2_6,
    LOG2_E,
    ONE,
    ROUND_TO_INTEGER,
    to_float32,
)

__all__ = ["MEASURES", "softmax_rows"]

MEASURES = ("loss", "rank", "entropy", "top1")
"""Columns of what `softmax_rows` measures."""

REASSOCIATE = {"fastmath": {"reassoc"}}
SCALE = np.float32(LOG2_E)
LOWEST = np.float32(-126.0)  # exponent of the smallest normal float32
EXPONENT_BIAS = np.int32(127)
MANTISSA_SHIFT = np.int32(23)
SIGN_SHIFT = np.int32(31)
MAGNITUDE = np.int32(0x7FFFFFFF)
FAR = np.float32(1e4)
BLOCK = 512
"""Values that are added in float32 before the rest is in float64."""


def _decoded(flat: Any, start: Any, vocab: Any, buffer: Any) -> Any:
    """One row as float32: a view where it is stored so, else decoded into `buffer`."""
    raise NotImplementedError("_decoded is called from kernels only")


@overload(_decoded, strict=False)
def _decoded_overload(flat: Any, start: Any, vocab: Any, buffer: Any) -> Any:
    if flat.dtype == types.float32:
        return lambda flat, start, vocab, buffer: flat[start : start + vocab]
    return _decode


def _decode(flat, start, vocab, buffer):  # type: ignore[no-untyped-def]
    stored = flat[start : start + vocab]  # a loop that starts at an offset does not vectorise
    for i in range(vocab):
        buffer[i] = to_float32(stored[i])
    return buffer[:vocab]


@register_jitable
def _top(row: Any) -> Any:
    """The largest logit, NaN if there is a positive one: as integers, since a float maximum does not vectorise."""
    best = np.int32(-0x80000000)
    for i in range(len(row)):  # by index: Numba's loops over elements do not become vector code
        bits = np.float32(row[i]).view(np.int32)
        best = max(best, np.int32(bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE)))
    return np.int32(best ^ ((best >> SIGN_SHIFT) & MAGNITUDE)).view(np.float32)


@register_jitable
def _exponentials(row: Any, top: Any, out: Any) -> None:
    """out = exp(row - top); relative error below 2**-21, and exp(-87) for everything below."""
    for i in range(len(row)):
        t = max(np.float32(np.float32(row[i] - top) * SCALE), LOWEST)
        whole = np.float32(np.float32(t + ROUND_TO_INTEGER) - ROUND_TO_INTEGER)
        f = np.float32(t - whole)
        p = np.float32(EXP2_6 * f + EXP2_5)
        p = np.float32(p * f + EXP2_4)
        p = np.float32(p * f + EXP2_3)
        p = np.float32(p * f + EXP2_2)
        p = np.float32(p * f + EXP2_1)
        p = np.float32(p * f + ONE)
        power = np.int32((np.int32(whole) + EXPONENT_BIAS) << MANTISSA_SHIFT)
        out[i] = np.float32(p * power.view(np.float32))


@register_jitable(**REASSOCIATE)
def _block_sum(values: Any) -> Any:
    """The sum of a few hundred values, in float32 as many times side by side as the processor has lanes."""
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
    return total


@register_jitable(**REASSOCIATE)
def _block_distance(row: Any, top: Any, weights: Any) -> Any:
    """The sum of (top - row) * weights; what is so far below that its weight does not count is taken for nearer."""
    total = np.float32(0)
    for i in range(len(row)):
        total += min(np.float32(top - row[i]), FAR) * weights[i]
    return total


@register_jitable
def _totals(row: Any, top: Any, exponentials: Any) -> Any:
    """Sum of the exponentials, and of each times its distance from the top: float64 over sums of blocks."""
    total = np.float64(0)
    distance = np.float64(0)
    for start in range(0, len(row), BLOCK):
        part = exponentials[start : start + BLOCK]
        total += np.float64(_block_sum(part))
        distance += np.float64(_block_distance(row[start : start + BLOCK], top, part))
    return total, distance


@register_jitable
def _rank(row: Any, target: Any) -> Any:
    """How many tokens stand before `target` in the order of tokens: larger logits, and equal ones of lower id."""
    return _count_from(row[:target], row[target]) + _count_above(row[target + 1 :], row[target])


@register_jitable
def _count_from(values: Any, x: Any) -> Any:
    count = np.int32(0)
    for i in range(len(values)):
        count = np.int32(count + np.int32(values[i] >= x))
    return count


@register_jitable
def _count_above(values: Any, x: Any) -> Any:
    count = np.int32(0)
    for i in range(len(values)):
        count = np.int32(count + np.int32(values[i] > x))
    return count


@register_jitable
def _gradient(exponentials: Any, scale: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = np.float32(exponentials[i] * scale)


@kernel_with(1, 3)
def _softmax(flat, row_stride, vocab, rows, targets, gradient, shares, measures):  # type: ignore[no-untyped-def]
    buffer, exponentials = np.empty(vocab, np.float32), np.empty(vocab, np.float32)
    r = next_row(rows, -1)
    while r >= 0:
        target, share = targets[r], shares[r]
        if 0 <= target < vocab:
            row = _decoded(flat, r * row_stride, vocab, buffer)
            top = _top(row)
            _exponentials(row, top, exponentials)
            total, distance = _totals(row, top, exponentials)
            log_total = np.log(total)
            measures[r, 0] = log_total + np.float64(top) - np.float64(row[target])
            measures[r, 1] = np.float64(_rank(row, target))
            measures[r, 2] = log_total + distance / total
            measures[r, 3] = 1 / total
            if share > 0:
                _gradient(exponentials, np.float32(share / total), gradient[r])
                gradient[r, target] -= np.float32(share)
        else:
            measures[r, :] = 0
            if share > 0:
                gradient[r, :] = 0
        r = next_row(rows, r)


def softmax_rows(logits: Tensor, targets: Tensor, gradient: Tensor | None) -> Tensor:
    """Measure every position, and write the gradient of the mean cross-entropy where there is an array for it.

    Args:
        logits: [positions, vocab] on the CPU, float32, float16 or bfloat16.
        targets: int64 [positions], ids in 0 .. vocab - 1. With any other, the position does not count: its measures and
            its gradient are zero.
        gradient: float32 [positions, vocab], or None.

    Returns:
        float64 [positions, 4]: loss in nats, rank of the target from 0, entropy in nats, top-1 probability.
    """
    measures = torch.empty((logits.shape[0], len(MEASURES)), dtype=torch.float64)
    counted = int(((targets >= 0) & (targets < logits.shape[1])).sum())
    share = 0.0 if gradient is None else 1 / max(counted, 1)
    shares = torch.full((logits.shape[0],), share, dtype=torch.float64)
    run(_softmax, logits, targets, torch.empty((0, 0)) if gradient is None else gradient, shares, measures)
    return measures
