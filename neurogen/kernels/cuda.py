"""Rows of logits on CUDA: one block of threads works on one row.

A kernel is a function marked `kernel`; its building blocks are device functions that all threads of a block call
together (they contain barriers, so never inside a branch that threads of one block take differently):

    row -> block_top -> block_keep_largest | block_keep_nucleus -> block_draw | block_normalise | block_mark

Masses are recomputed from the logits at every pass instead of being stored. What is kept of a row is a *cut*: the key
of the last token kept and the last id kept among those with that key. Sums are of integers and therefore do not depend
on the order in which threads arrive; the same scalar functions as on the CPU make them (`numerics`).

    thread     0     1     2   ...  255     0     1   ...      reads are coalesced
    row      x[0]  x[1]  x[2]  ... x[255] x[256] x[257] ...    vocab logits, float32 or 16 bits, any strides

Launch configuration: BLOCK threads (any number of at least one is correct), at most MAX_GRID blocks, 6 KiB of static
shared memory. Nothing is allocated, nothing waits for the host, so a launch can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import config, cuda
from torch import Tensor

from neurogen.kernels.numerics import (
    NEGATIVE_INFINITY,
    exact_mul,
    is_valid,
    is_warm,
    key_of,
    mass_bits,
    mass_of,
    mul_high,
    nucleus_mass,
    random_bits,
    scale_of,
    to_float32,
    value_of,
)

__all__ = [
    "BLOCK",
    "NOTHING",
    "block_draw",
    "block_fill",
    "block_first",
    "block_keep_all",
    "block_keep_largest",
    "block_keep_nucleus",
    "block_mark",
    "block_normalise",
    "block_top",
    "kernel",
    "launch",
    "random_bits",
]

BLOCK = 256
MAX_GRID = 65_535
NOTHING = NEGATIVE_INFINITY
"""`block_top` of a row without a valid distribution."""

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
LEVELS = 32 // DIGIT_BITS
PARTS = 256

if not config.ENABLE_CUDASIM:
    from numba.cuda import libdevice
    from numba.cuda.extending import overload

    @overload(exact_mul, target="cuda", strict=False)
    def _exact_mul_cuda(a: Any, b: Any) -> Any:
        return lambda a, b: libdevice.fmul_rn(a, b)  # the only multiplication NVVM and ptxas never fuse


def kernel(function: Callable[..., Any]) -> Any:
    """A CUDA kernel, compiled for the card and the argument types at its first launch."""
    return cuda.jit(function)


def device(function: Callable[..., Any]) -> Any:
    """A function called from kernels."""
    return cuda.jit(device=True)(function)


@device
def block_fill(out, value):  # type: ignore[no-untyped-def]
    """Write one value to all of an array, shared or global. No barrier."""
    for i in range(cuda.threadIdx.x, out.shape[0], cuda.blockDim.x):
        out[i] = value


@device
def _sum(values):  # type: ignore[no-untyped-def]
    """The sum of a small shared array, made by every thread for itself: reads of one address are one broadcast."""
    total = np.int64(0)
    for value in values:
        total += value
    return total


@device
def block_top(row, bfloat16):  # type: ignore[no-untyped-def]
    """The largest logit of a row, or `NOTHING` when it holds NaN or +inf, or only -inf. Reads the row once."""
    best = cuda.shared.array(1, np.uint32)
    wrong = cuda.shared.array(1, np.int32)
    if cuda.threadIdx.x == 0:
        best[0] = 0
        wrong[0] = 0
    cuda.syncthreads()
    own = np.uint32(0)
    for i in range(cuda.threadIdx.x, row.shape[0], cuda.blockDim.x):
        x = to_float32(row[i], bfloat16)
        if is_valid(x):
            own = max(own, key_of(x))
        else:
            wrong[0] = 1  # whoever writes it writes the same
    cuda.atomic.max(best, 0, own)
    cuda.syncthreads()
    key = best[0]
    invalid = wrong[0]
    cuda.syncthreads()
    return NOTHING if invalid else value_of(key)


@device
def block_first(row, bfloat16, x):  # type: ignore[no-untyped-def]
    """The lowest id whose logit is `x`. Reads the row once."""
    first = cuda.shared.array(1, np.int64)
    if cuda.threadIdx.x == 0:
        first[0] = row.shape[0]
    cuda.syncthreads()
    own = np.int64(row.shape[0])
    key = key_of(x)
    for i in range(cuda.threadIdx.x, row.shape[0], cuda.blockDim.x):
        if own == row.shape[0] and key_of(to_float32(row[i], bfloat16)) == key:
            own = np.int64(i)
    cuda.atomic.min(first, 0, own)
    cuda.syncthreads()
    token = first[0]
    cuda.syncthreads()
    return token


@device
def _survives(x, i, cut_key, cut_id):  # type: ignore[no-untyped-def]
    """Whether a token is kept: above the cut, or at its key and not after its last id. -inf never is."""
    if x == NEGATIVE_INFINITY:
        return False
    key = key_of(x)
    return key > cut_key or (key == cut_key and i <= cut_id)


@device
def block_keep_all(row, bfloat16, top, temperature):  # type: ignore[no-untyped-def]
    """The cut below everything; at temperature 0 (or what a kernel takes for it) the argmax alone."""
    if is_warm(temperature):
        return np.uint32(0), np.int64(-1)
    return key_of(top), block_first(row, bfloat16, top)


@device
def block_keep_largest(row, bfloat16, top, temperature, k):  # type: ignore[no-untyped-def]
    """The cut after the k largest logits; k <= 0 keeps all. Reads the row four times, a fifth time for a tie."""
    if 0 < k < row.shape[0] and is_warm(temperature):
        return _block_cut(row, bfloat16, top, temperature, True, np.int64(k), np.float64(1.0))
    return block_keep_all(row, bfloat16, top, temperature)


@device
def block_keep_nucleus(row, bfloat16, top, temperature, p):  # type: ignore[no-untyped-def]
    """The cut where the mass reaches p; p >= 1 keeps all. Reads the row four times, a fifth time for a tie."""
    if p < 1 and is_warm(temperature):
        return _block_cut(row, bfloat16, top, temperature, False, np.int64(0), p)
    return block_keep_all(row, bfloat16, top, temperature)


@device
def _block_cut(row, bfloat16, top, temperature, count, k, p):  # type: ignore[no-untyped-def]
    """The smallest prefix, in order of tokens, that holds k tokens (`count`) or the share p of the mass.

    A radix selection over monotone keys, a digit of eight bits at a time: a histogram of the tokens (or masses) that
    share the digits found so far shows in which digit the prefix ends.
    """
    histogram = cuda.shared.array(DIGITS, np.int64)
    scale = scale_of(temperature)
    bits = mass_bits(row.shape[0])
    prefix = np.uint32(0)
    above = np.int64(0)
    inside = np.int64(0)
    wanted = np.int64(k)
    for level in range(LEVELS):
        shift = np.uint32(32 - DIGIT_BITS * (level + 1))
        block_fill(histogram, np.int64(0))
        cuda.syncthreads()
        for i in range(cuda.threadIdx.x, row.shape[0], cuda.blockDim.x):
            x = to_float32(row[i], bfloat16)
            if x != NEGATIVE_INFINITY:
                key = key_of(x)
                if level == 0 or (key ^ prefix) >> np.uint32(shift + np.uint32(DIGIT_BITS)) == 0:
                    weight = np.int64(1) if count else mass_of(x, top, scale, bits)
                    cuda.atomic.add(histogram, np.int64((key >> shift) & np.uint32(DIGITS - 1)), weight)
        cuda.syncthreads()
        if level == 0:
            total = _sum(histogram)
            if not count:
                wanted = nucleus_mass(p, total)
            wanted = min(wanted, total)
        digit = np.int64(DIGITS - 1)
        while above + histogram[digit] < wanted:
            above += histogram[digit]
            digit -= 1
        inside = histogram[digit]
        cuda.syncthreads()
        prefix |= np.uint32(np.uint32(digit) << shift)
    unit = np.int64(1) if count else mass_of(value_of(prefix), top, scale, bits)
    kept = (wanted - above + unit - 1) // unit
    if kept * unit >= inside:
        return prefix, np.int64(row.shape[0])
    return prefix, _block_nth(row, bfloat16, prefix, kept)


@device
def _block_nth(row, bfloat16, key, n):  # type: ignore[no-untyped-def]
    """The id of the n-th (from 1) logit that has this key. Reads the row once, then ever smaller parts of it."""
    counts = cuda.shared.array(PARTS, np.int64)
    low = np.int64(0)
    high = np.int64(row.shape[0])
    left = np.int64(n)
    while high - low > 1:
        size = (high - low + PARTS - 1) // PARTS
        block_fill(counts, np.int64(0))
        cuda.syncthreads()
        for i in range(low + cuda.threadIdx.x, high, cuda.blockDim.x):
            if key_of(to_float32(row[i], bfloat16)) == key:
                cuda.atomic.add(counts, (i - low) // size, np.int64(1))
        cuda.syncthreads()
        part = np.int64(0)
        while left > counts[part]:
            left -= counts[part]
            part += 1
        cuda.syncthreads()
        low += part * size
        high = min(high, low + size)
    return low


@device
def _block_part_masses(row, bfloat16, top, temperature, cut_key, cut_id, low, high, size, masses):  # type: ignore[no-untyped-def]
    """Sum the kept masses of ids low to high, in parts of `size`, into masses [PARTS]. Ends with a barrier."""
    scale = scale_of(temperature) if is_warm(temperature) else np.float32(1.0)
    bits = mass_bits(row.shape[0])
    block_fill(masses, np.int64(0))
    cuda.syncthreads()
    for i in range(low + cuda.threadIdx.x, high, cuda.blockDim.x):
        x = to_float32(row[i], bfloat16)
        if _survives(x, i, cut_key, cut_id):
            cuda.atomic.add(masses, (i - low) // size, mass_of(x, top, scale, bits))
    cuda.syncthreads()


@device
def block_draw(row, bfloat16, top, temperature, cut_key, cut_id, random):  # type: ignore[no-untyped-def]
    """Inverse CDF in id order over what the cut keeps, with one random number (see `numerics.random_bits`).

    Reads the row once, then ever smaller parts of it. All threads return the same id.
    """
    masses = cuda.shared.array(PARTS, np.int64)
    low = np.int64(0)
    high = np.int64(row.shape[0])
    target = np.int64(-1)
    while target < 0 or high - low > 1:
        size = (high - low + PARTS - 1) // PARTS
        _block_part_masses(row, bfloat16, top, temperature, cut_key, cut_id, low, high, size, masses)
        if target < 0:
            total = _sum(masses)
            target = np.int64(mul_high(random, np.uint64(total)))
        part = np.int64(0)
        while target >= masses[part]:
            target -= masses[part]
            part += 1
        cuda.syncthreads()
        low += part * size
        high = min(high, low + size)
    return low


@device
def block_normalise(row, bfloat16, top, temperature, cut_key, cut_id, out):  # type: ignore[no-untyped-def]
    """Write the probabilities of what the cut keeps, float32 [vocab]. Reads the row twice."""
    masses = cuda.shared.array(PARTS, np.int64)
    vocab = np.int64(row.shape[0])
    size = (vocab + PARTS - 1) // PARTS
    _block_part_masses(row, bfloat16, top, temperature, cut_key, cut_id, np.int64(0), vocab, size, masses)
    total = _sum(masses)
    scale = scale_of(temperature) if is_warm(temperature) else np.float32(1.0)
    bits = mass_bits(vocab)
    for i in range(cuda.threadIdx.x, vocab, cuda.blockDim.x):
        x = to_float32(row[i], bfloat16)
        mass = mass_of(x, top, scale, bits) if _survives(x, i, cut_key, cut_id) else np.int64(0)
        out[i] = np.float32(np.float64(mass) / np.float64(total))
    cuda.syncthreads()


@device
def block_mark(row, bfloat16, cut_key, cut_id, out):  # type: ignore[no-untyped-def]
    """Write which tokens the cut keeps, bool [vocab]. Reads the row once."""
    for i in range(cuda.threadIdx.x, row.shape[0], cuda.blockDim.x):
        out[i] = _survives(to_float32(row[i], bfloat16), i, cut_key, cut_id)


def launch(function: Any, logits: Tensor, *tensors: Tensor) -> None:
    """Launch a kernel with a block for each row of `logits`, on torch's current stream; does not wait.

    The kernel is called as `function(logits, bfloat16, *arrays)` and strides over rows by the size of the grid.

    Args:
        function: made by `kernel`.
        logits: [batch, vocab] on CUDA, float32, float16 or bfloat16, any strides. Halves arrive as their uint16 bits.
        *tensors: row parameters and outputs on the same device.
    """
    bits = logits if logits.dtype == torch.float32 else logits.view(torch.uint16)
    arrays = [cuda.as_cuda_array(tensor, sync=False) for tensor in (bits, *tensors)]
    stream = cuda.external_stream(torch.cuda.current_stream(logits.device).cuda_stream)
    with cuda.gpus[logits.device.index or 0]:
        function[min(logits.shape[0], MAX_GRID), BLOCK, stream](arrays[0], logits.dtype == torch.bfloat16, *arrays[1:])
