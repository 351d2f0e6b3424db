"""Sampler kernels on CUDA: how they are made, and launched on torch's current stream.

A kernel works on one row a block. That of a truncation sampler is made by `truncation` from its definition, which says
what is kept of a row:

    logits -> row -> largest | nucleus | heavier | ... -> draw | normalise | mark

Launch configuration: a block for each row, up to MAX_GRID; BLOCK threads, or half as many where the batch has more rows
than the card has multiprocessors, so that two rows share one. Any multiple of 32 threads up to BLOCK is correct. Static
shared memory stays below 48 KiB. Nothing is allocated but what is returned, nothing waits for the host and nothing is
remembered between launches, so that a launch can be captured in a CUDA graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numba import cuda, types
from torch import Tensor

from neurogen.errors import DeviceError
from neurogen.kernels.cuda_block import device
from neurogen.kernels.cuda_cuts import everything, heavier, largest, nucleus
from neurogen.kernels.cuda_draw import draw, fill, mark, normalise
from neurogen.kernels.cuda_rows import NOTHING, Row, argmax_of, at_row, first_top, open_space
from neurogen.kernels.host import Calls, calls, with_row_parameters
from neurogen.kernels.numerics import is_warm, random_bits

__all__ = [
    "BLOCK",
    "NOTHING",
    "Kernel",
    "Row",
    "argmax",
    "everything",
    "heavier",
    "largest",
    "launch",
    "nucleus",
    "truncation",
]

BLOCK = 1024
LAUNCH_BOUNDS = (BLOCK, 1)
"""A block of BLOCK threads a multiprocessor: told less, the compiler makes room for two by spilling registers."""
MAX_GRID = 65_535

PROBABILITIES = (np.float32(0), np.float32(1))
"""What is written of a token that cannot be drawn, and of one that always is, as a probability."""
MARKS = (False, True)
"""The same in a support."""

STORED = {torch.float32: types.float32, torch.bfloat16: types.uint16, torch.float16: types.int16}
"""How a kernel reads logits of each dtype, see `numerics.to_float32`."""
ELEMENTS = {
    torch.int64: types.int64,
    torch.float64: types.float64,
    torch.float32: types.float32,
    torch.bool: types.uint8,
}


class Kernel:
    """A kernel and its compiled forms: one for each card and combination of dtypes, made at the first launch with it.

    Attributes:
        function: called as function(logits, offset, row_stride, vocab, batch, arrays). Row r of the logits begins at
            logits[r * row_stride]; `offset` is where the first stands in memory, modulo four logits. `arrays` has the
            row parameters and the outputs, each from its first element on.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._forms: dict[Any, Any] = {}

    def signature(self, logits: torch.dtype, *tensors: torch.dtype) -> Any:
        """The Numba signature of the form for these dtypes."""
        arrays = types.Tuple([types.CPointer(ELEMENTS[dtype]) for dtype in tensors])
        size = types.int64
        return types.void(types.CPointer(STORED[logits]), size, size, size, size, arrays)

    def form(self, device: int, *dtypes: torch.dtype) -> Any:
        """The compiled form for these dtypes on the current card, whose number is `device`."""
        key = (device, dtypes)
        if key not in self._forms:
            if torch.cuda.is_current_stream_capturing():
                raise DeviceError(
                    f"A kernel for {', '.join(map(str, dtypes))} cannot be compiled while a CUDA graph is captured. "
                    "Call the sampler once with such logits before."
                )
            # Not through link-time optimisation, Numba's default: then what runs is the PTX that the tests look at.
            compiled = cuda.jit(self.signature(*dtypes), launch_bounds=LAUNCH_BOUNDS, lto=False)
            self._forms[key] = compiled(self.function)
        return self._forms[key]


def truncation(keep: Callable[..., Any], *names: str) -> Calls:
    """The kernels of a sampler that keeps some tokens of a row and draws from them by probability.

    Each reads a row once for its largest logit, then as often as `keep` says, and then as often as `draw`, `normalise`
    or `mark` say: at a usual row twice in all for `largest` and `nucleus`, and hardly more for the others.

    Args:
        keep: called as keep(row, *parameters) inside a kernel by all threads of a block, so it is compiled by Numba;
            returns what `largest`, `nucleus`, `heavier` or `everything` return. Not called at temperature 0, where the
            argmax is kept, nor for a row without a valid distribution.
        *names: the sampler's parameters that `keep` takes, at most three.

    Returns:
        The functions of a backend module: `sample, probs, support = truncation(keep, "k")`.
    """
    cut_of = device(with_row_parameters(keep if hasattr(keep, "py_func") else device(keep), len(names)))

    def sample(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        space = open_space()
        temperature, seed, position, ids = arrays[-4], arrays[-3], arrays[-2], arrays[-1]
        r = np.int64(cuda.blockIdx.x)
        while r < batch:
            row = at_row(logits, offset, r * row_stride, vocab, temperature[r], space)
            token = np.int64(-1)
            if row.top != NOTHING:
                if is_warm(temperature[r]):
                    token = draw(row, cut_of(row, arrays, r), random_bits(seed[r], position[r], 0))
                else:
                    token = first_top(row)
            if cuda.threadIdx.x == 0:
                ids[r] = token
            cuda.syncthreads()
            r += cuda.gridDim.x

    def describing(write: Callable[..., None], zero: Any, one: Any) -> Kernel:
        def describe(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
            space = open_space()
            temperature, out = arrays[-2], arrays[-1]
            r = np.int64(cuda.blockIdx.x)
            while r < batch:
                row = at_row(logits, offset, r * row_stride, vocab, temperature[r], space)
                if row.top != NOTHING and is_warm(temperature[r]):
                    write(row, cut_of(row, arrays, r), out, r * vocab)
                else:
                    _only_argmax(row, out, r * vocab, zero, one)
                cuda.syncthreads()
                r += cuda.gridDim.x

        return Kernel(describe)

    probs, support = describing(normalise, *PROBABILITIES), describing(mark, *MARKS)
    return calls(launch, Kernel(sample), probs, support, (*names, "temperature"))


@device
def _only_argmax(row, out, first, zero, one):  # type: ignore[no-untyped-def]
    """`one` at the argmax and `zero` elsewhere; all `zero` in a row without a valid distribution."""
    fill(out, first, row.vocab, zero)
    if row.top != NOTHING:
        token = first_top(row)
        if cuda.threadIdx.x == 0:
            out[first + token] = one


def argmax() -> Calls:
    """The kernels of a sampler that takes the largest logit, the lowest id among equals. Each reads a row once."""

    def sample(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        space = open_space()
        r = np.int64(cuda.blockIdx.x)
        while r < batch:
            token = argmax_of(logits, offset, r * row_stride, vocab, space)
            if cuda.threadIdx.x == 0:
                arrays[-1][r] = token
            r += cuda.gridDim.x

    def describing(zero: Any, one: Any) -> Kernel:
        def describe(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
            space = open_space()
            out = arrays[-1]
            r = np.int64(cuda.blockIdx.x)
            while r < batch:
                token = argmax_of(logits, offset, r * row_stride, vocab, space)
                fill(out, r * vocab, vocab, zero)
                if cuda.threadIdx.x == 0 and token >= 0:
                    out[r * vocab + token] = one
                r += cuda.gridDim.x

        return Kernel(describe)

    return calls(launch, Kernel(sample), describing(*PROBABILITIES), describing(*MARKS), ())


# Launching.


def launch(kernel: Kernel, logits: Tensor, *tensors: Tensor) -> None:
    """Launch a kernel with a block for each row of `logits`, on torch's current stream; does not wait.

    Args:
        kernel: see `Kernel.function` for what it is called with.
        logits: [batch, vocab] on CUDA, float32, float16 or bfloat16, any strides. Rows that are not contiguous are
            copied first.
        *tensors: row parameters and outputs on the same device.
    """
    batch, vocab = logits.shape
    if batch == 0:
        return
    if logits.stride(1) != 1 and vocab > 1:
        logits = logits.contiguous()
    tensors = tuple(tensor.contiguous() for tensor in tensors)
    pointer, device = logits.data_ptr(), logits.device.index or 0
    stream = torch.cuda.current_stream(logits.device).cuda_stream
    with cuda.gpus[device]:
        form = kernel.form(device, logits.dtype, *(tensor.dtype for tensor in tensors))
        run = _configured(form, min(batch, MAX_GRID), _block(batch, device), stream)
        run(
            pointer,
            pointer // logits.element_size() % 4,
            logits.stride(0),
            vocab,
            batch,
            tuple(tensor.data_ptr() for tensor in tensors),
        )


@lru_cache(maxsize=1024)
def _configured(form: Any, grid: int, block: int, stream: int) -> Any:
    """A kernel ready to be called on a stream of torch's, given by its handle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a small batch does not fill the card is no news
        return form[grid, block, cuda.external_stream(stream)]


def _block(batch: int, device: int) -> int:
    return BLOCK if batch <= _multiprocessors(device) else BLOCK // 2


@cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
