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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile, InTreeCacheLocator
from numba.extending import overload, register_jitable
from torch import Tensor

from neurogen.kernels import numerics
from neurogen.kernels.numerics import (
    NEGATIVE_INFINITY,
    is_warm,
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

NOTHING = NEGATIVE_INFINITY
"""`top_of` a row without a valid distribution."""

LOWEST_KEY = np.uint32(0x80000000 - 0x7F800000)  # of -inf
INFINITY_ABOVE_LOWEST = np.uint32(2 * 0x7F800000)
SPAN = 512
"""`argmax_of` looks at so many logits side by side before it asks whether its token is among them."""

# A key has 32 bits, looked at from the top in three digits that do not overlap; the first has 10 bits.
DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS
SHIFTS = (22, 11, 0)

ROWS_PER_THREAD = 1
WORK_PER_THREAD = 1 << 15  # logits; below this a second thread costs more than it saves


class _OwnFolder(InTreeCacheLocator):  # type: ignore[misc]
    """The `__pycache__` beside the code even where it cannot be written: what has been compiled there can be read."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if Path(py_file).is_file() else None


class _KernelCacheImpl(FunctionCache._impl_class):  # type: ignore[misc]
    _locator_classes = (*FunctionCache._impl_class._locator_classes, _OwnFolder)


class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of machine code, of functions that depend on this toolkit, on disks that may be full or read-only.

    Numba keys the cache by the file of the function itself. The toolkit's own files are added to the key: after an
    update nobody runs a kernel compiled from an older one. Where nothing can be read or written, a kernel is compiled.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = IndexDataCacheFile(
            cache_path=locator.get_cache_path(),
            filename_base=self._impl.filename_base,
            source_stamp=(locator.get_source_stamp(), _toolkit_stamp()),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with suppress(OSError):
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function over a range of rows; where there is room the machine code is kept for the next process."""
    compiled: Any = njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # Numba's word for "no place to keep it": then it is compiled in every process
        compiled._cache = _KernelCache(function)
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
    stored = flat[start : start + vocab]  # a loop that starts at an offset does not vectorise
    for i in range(vocab):
        buffer[i] = to_float32(stored[i], bfloat16)
    return buffer[:vocab]


@register_jitable
def top_of(row: Any) -> Any:
    """The largest logit of a row, or `NOTHING` when the row holds NaN or +inf, or only -inf.

    Looks for the largest distance of a key from that of -inf, as integers, since those vectorise and floats do not.
    What is not valid lies at +inf or above it: NaN with a sign would have a key below -inf, and wraps around.
    """
    best = np.uint32(0)
    for i in range(len(row)):
        best = max(best, np.uint32(key_of(row[i]) - LOWEST_KEY))
    if best >= INFINITY_ABOVE_LOWEST:
        return NOTHING
    return value_of(np.uint32(best + LOWEST_KEY))


@register_jitable
def argmax_of(row: Any, top: Any) -> Any:
    """The lowest id whose logit is `top`."""
    key = key_of(top)
    for start in range(0, len(row), SPAN):
        span = row[start : start + SPAN]
        if _holds(span, key):
            for i in range(len(span)):
                if key_of(span[i]) == key:
                    return start + i
    return -1


@register_jitable
def _holds(span: Any, key: Any) -> Any:
    """Whether one of a few logits has this key; without a way out early, so that it vectorises."""
    found = np.uint32(0)
    for i in range(len(span)):
        found |= np.uint32(key_of(span[i]) == key)
    return found != 0


@register_jitable
def fill_masses(row: Any, temperature: Any, masses: Any) -> Any:
    """Set the mass of every token; at temperature 0 (or what a kernel takes for it) the argmax has all of it.

    Returns:
        Whether the row has a valid distribution. If not, all masses are 0.
    """
    top = top_of(row)
    bits = mass_bits(len(row))
    if top == NOTHING or not is_warm(temperature):
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
    for i in range(len(masses)):
        total += masses[i]
    return total


@register_jitable
def keep_largest(row: Any, masses: Any, k: Any) -> None:
    """Top-k: remove the mass of all but the k largest logits; k <= 0 keeps all. Cost: up to four reads of the row."""
    remaining = np.int64(0)
    for i in range(len(masses)):
        remaining += masses[i] > 0
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
    _cut_at(row, masses, prefix, wanted - above, count)


@register_jitable
def _cut_at(row: Any, masses: Any, cut: Any, wanted: Any, count: Any) -> None:
    """Remove what lies below the key `cut`, and of those equal to it all after the first that reach `wanted`."""
    for i in range(len(row)):
        key = key_of(row[i])
        if key < cut:
            masses[i] = 0
        elif key == cut and masses[i] > 0:
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
