"""Rows of logits on the CPU: how a kernel reads them, truncates them, draws from them, and is run over a batch.

A kernel is a function marked `kernel` over a range of rows. It works in terms of a row's *masses*: int64 [vocab], a
fixed-point weight for every token that can still be drawn and 0 for all others (`numerics.mass_of`):

    logits -> open_row -> fill_masses -> keep_largest | keep_nucleus -> draw | normalise | mark

`run` splits a batch over threads of its own and not over Numba's threading layer, which cannot be called from several
Python threads at once on every platform, nor after a fork.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core.caching import IndexDataCacheFile
from numba.extending import overload, register_jitable
from torch import Tensor

from neurogen.kernels import numerics
from neurogen.kernels.numerics import (
    is_valid,
    key_of,
    mass_bits,
    mass_of,
    mul_high,
    nucleus_mass,
    scale_of,
    to_float32,
    value_of,
)

__all__ = [
    "arrays",
    "draw",
    "fill_masses",
    "keep_largest",
    "keep_nucleus",
    "kernel",
    "mark",
    "normalise",
    "open_row",
    "run",
    "top_of",
]

NOTHING = np.float32(-np.inf)
"""`top_of` a row without a valid distribution."""

# A key has 32 bits, looked at from the top in three digits that do not overlap; the first has 10 bits.
DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS
SHIFTS = (22, 11, 0)

ROWS_PER_THREAD = 1
WORK_PER_THREAD = 1 << 15  # logits; below this a second thread costs more than it saves


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function over a range of rows; the machine code is kept on disk for the next process.

    Numba keys that cache by the file of the function itself. A kernel also depends on this toolkit, so the toolkit's
    own files are added to the key: after an update nobody runs a kernel compiled from an older one.
    """
    compiled: Any = njit(nogil=True, cache=True, error_model="numpy")(function)
    implementation = compiled._cache._impl
    stamp = (implementation.locator.get_source_stamp(), _toolkit_stamp())
    compiled._cache._cache_file = IndexDataCacheFile(
        cache_path=implementation.locator.get_cache_path(),
        filename_base=implementation.filename_base,
        source_stamp=stamp,
    )
    return compiled


def _toolkit_stamp() -> tuple[tuple[float, int], ...]:
    stats = (Path(file).stat() for file in (__file__, numerics.__file__))
    return tuple((stat.st_mtime, stat.st_size) for stat in stats)


# One row.


def open_row(flat: Any, start: Any, vocab: Any, bfloat16: Any, buffer: Any) -> Any:
    """One row as contiguous float32: a view where it is stored so, else decoded into `buffer`."""
    raise NotImplementedError("open_row is called from kernels only")


@overload(open_row, strict=False)
def _open_row(flat: Any, start: Any, vocab: Any, bfloat16: Any, buffer: Any) -> Any:
    if flat.dtype == types.float32:
        return lambda flat, start, vocab, bfloat16, buffer: flat[start : start + vocab]
    return _decoded_row


def _decoded_row(flat, start, vocab, bfloat16, buffer):  # type: ignore[no-untyped-def]
    for i in range(vocab):
        buffer[i] = to_float32(flat[start + i], bfloat16)
    return buffer[:vocab]


@register_jitable
def top_of(row: Any) -> Any:
    """The largest logit of a row, or `NOTHING` when the row holds NaN or +inf, or only -inf."""
    top = NOTHING
    valid = True
    for x in row:
        valid &= is_valid(x)
        top = max(top, x)
    return top if valid else NOTHING


@register_jitable
def argmax_of(row: Any, top: Any) -> Any:
    """The lowest id whose logit is `top`."""
    for i in range(len(row)):
        if row[i] == top:
            return i
    return -1


@register_jitable
def fill_masses(row: Any, temperature: Any, masses: Any) -> Any:
    """Set the mass of every token; at temperature 0 (or what a kernel takes for it) the argmax has all of it.

    Returns:
        Whether the row has a valid distribution. If not, all masses are 0.
    """
    top = top_of(row)
    bits = mass_bits(len(row))
    if top == NOTHING or not temperature > 0:
        masses[:] = 0
        if top == NOTHING:
            return False
        masses[argmax_of(row, top)] = np.int64(1) << bits
        return True
    scale = scale_of(temperature)
    for i in range(len(row)):
        masses[i] = mass_of(row[i], top, scale, bits)
    return True


@register_jitable
def total_of(masses: Any) -> Any:
    """The exact sum of a row's masses, below 2**62."""
    total = np.int64(0)
    for mass in masses:
        total += mass
    return total


@register_jitable
def keep_largest(row: Any, masses: Any, k: Any) -> None:
    """Top-k: remove the mass of all but the k largest logits; k <= 0 keeps all. Cost: up to four reads of the row."""
    remaining = np.int64(0)
    for mass in masses:
        remaining += mass > 0
    if 0 < k < remaining:
        _cut(row, masses, np.int64(k), True)


@register_jitable
def keep_nucleus(row: Any, masses: Any, p: Any) -> None:
    """Top-p: remove the mass outside the smallest prefix whose mass reaches p; p >= 1 keeps all."""
    if p < 1:
        _cut(row, masses, nucleus_mass(p, total_of(masses)), False)


@register_jitable
def _cut(row: Any, masses: Any, wanted: Any, count: Any) -> None:
    """Keep the smallest prefix, in order of tokens, that holds `wanted` tokens (`count`) or `wanted` mass.

    A radix selection over monotone keys: a histogram of the leading digit finds the digit in which the prefix ends,
    then only tokens with that digit count for the next one. All of it in integers: no order of work changes the result.
    """
    histogram = np.zeros(DIGITS, np.int64)
    prefix = np.uint32(0)
    above = np.int64(0)
    for shift in SHIFTS:
        histogram[:] = 0
        for i in range(len(row)):
            if masses[i] > 0:
                key = key_of(row[i])
                if shift == SHIFTS[0] or key >> np.uint32(shift + DIGIT_BITS) == prefix >> np.uint32(
                    shift + DIGIT_BITS
                ):
                    digit = (key >> np.uint32(shift)) & np.uint32(DIGITS - 1)
                    histogram[digit] += 1 if count else masses[i]
        digit = DIGITS - 1
        while above + histogram[digit] < wanted:
            above += histogram[digit]
            digit -= 1
        prefix |= np.uint32(np.uint32(digit) << np.uint32(shift))
    _cut_at(row, masses, value_of(prefix), wanted - above, count)


@register_jitable
def _cut_at(row: Any, masses: Any, threshold: Any, wanted: Any, count: Any) -> None:
    """Remove what lies below `threshold`, and of those equal to it all after the first that reach `wanted`."""
    for i in range(len(row)):
        if row[i] < threshold:
            masses[i] = 0
        elif row[i] == threshold and masses[i] > 0:
            if wanted <= 0:
                masses[i] = 0
            else:
                wanted -= 1 if count else masses[i]


@register_jitable
def draw(masses: Any, random: Any) -> Any:
    """Inverse CDF in id order with one random number: the first id whose cumulative mass exceeds random / 2**64.

    Returns:
        The id, or -1 when no mass is left.
    """
    target = np.int64(mul_high(random, np.uint64(total_of(masses))))
    for i in range(len(masses)):
        target -= masses[i]
        if target < 0:
            return i
    return -1


@register_jitable
def normalise(masses: Any, out: Any) -> None:
    """Write a row's probabilities as float32; zeros when no mass is left."""
    total = np.float64(max(total_of(masses), np.int64(1)))
    for i in range(len(masses)):
        out[i] = np.float32(np.float64(masses[i]) / total)


@register_jitable
def mark(masses: Any, out: Any) -> None:
    """Write which tokens of a row can be drawn."""
    for i in range(len(masses)):
        out[i] = masses[i] > 0


# A batch.


def run(function: Any, logits: Tensor, *tensors: Tensor) -> None:
    """Run a kernel over all rows of `logits`, on as many threads as torch uses and the work is worth.

    The kernel is called as `function(flat, row_stride, vocab, bfloat16, start, stop, *arrays)`, where row r of the
    logits is `open_row(flat, r * row_stride, vocab, bfloat16, buffer)` for start <= r < stop.

    Args:
        function: made by `kernel`.
        logits: [batch, vocab], float32, float16 or bfloat16, any strides.
        *tensors: row parameters and outputs, passed as NumPy views.
    """
    batch, vocab = logits.shape
    flat, row_stride = _flattened(logits)
    common = (flat, row_stride, vocab, logits.dtype == torch.bfloat16)
    views = arrays(*tensors)
    parts = min(torch.get_num_threads(), batch // ROWS_PER_THREAD, max(1, batch * vocab // WORK_PER_THREAD))
    ranges = list(_ranges(batch, parts))
    others = [_submit(function, *common, *span, *views) for span in ranges[1:]]
    try:
        function(*common, *ranges[0], *views)
    finally:
        for other in others:
            other.result()


def arrays(*tensors: Tensor) -> tuple[np.ndarray[Any, Any], ...]:
    """NumPy views of CPU tensors."""
    return tuple(tensor.numpy() for tensor in tensors)


def _flattened(logits: Tensor) -> tuple[np.ndarray[Any, Any], int]:
    """The logits' memory as one contiguous array, and the distance between rows in elements."""
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    batch, vocab = logits.shape
    row_stride = logits.stride(0) if batch > 1 else vocab
    flat = logits.as_strided(((batch - 1) * row_stride + vocab,), (1,))
    if flat.dtype == torch.float32:
        return flat.numpy(), row_stride
    return flat.view(torch.int16).numpy().view(np.uint16), row_stride


def _ranges(batch: int, parts: int) -> Iterator[tuple[int, int]]:
    edges = [batch * part // parts for part in range(parts + 1)]
    return itertools.pairwise(edges)


_pool: ThreadPoolExecutor | None = None
_pool_owner = 0


def _submit(function: Any, *arguments: Any) -> Future[Any]:
    """Start a kernel on another thread; a process made by fork gets a pool of its own."""
    global _pool, _pool_owner
    if _pool is None or _pool_owner != os.getpid():
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="neurogen")
        _pool_owner = os.getpid()
    return _pool.submit(function, *arguments)
