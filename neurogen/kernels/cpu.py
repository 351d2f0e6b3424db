"""Sampler kernels on the CPU, and the public names of their toolkit.

A kernel is a function marked `kernel` that works on the rows it claims. That of a truncation sampler is made by
`truncation` from its definition, which says what is kept of a row:

    logits -> row -> largest | nucleus | heavier | ... -> draw | normalise | mark

    cpu_rows     a row, and the passes over it        cpu_threads  a batch over threads
    cpu_cuts     what is kept, and what comes of it   cpu_cache    compiling, and keeping machine code
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from neurogen.kernels.cpu_cache import kernel
from neurogen.kernels.cpu_cuts import draw, everything, heavier, largest, mark, normalise, nucleus
from neurogen.kernels.cpu_rows import NOTHING, Row, argmax_of, at_row, open_row
from neurogen.kernels.cpu_threads import next_row, run
from neurogen.kernels.host import Calls, calls
from neurogen.kernels.numerics import is_warm, random_bits

__all__ = [
    "NOTHING",
    "Row",
    "argmax_of",
    "at_row",
    "draw",
    "everything",
    "heavier",
    "kernel",
    "largest",
    "mark",
    "next_row",
    "normalise",
    "nucleus",
    "open_row",
    "run",
    "truncation",
]


def truncation(keep: Callable[..., Any], *names: str) -> Calls:
    """The kernels of a sampler that keeps some tokens of a row and draws from them by probability.

    Args:
        keep: called as keep(row, *parameters) inside a kernel, so it is compiled by Numba; returns what `largest`,
            `nucleus`, `heavier` or `everything` return. Not called at temperature 0, where the argmax is kept, nor for
            a row without a valid distribution.
        *names: the sampler's parameters that `keep` takes, at most three.

    Returns:
        The functions of a backend module: `sample, probs, support = truncation(keep, "k")`.
    """
    kept_of = _keeper(register_jitable(keep), len(names))

    @kernel
    def sample(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        temperature, seed, position, ids = arrays[-4], arrays[-3], arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, temperature[r])
            if row.top == NOTHING:
                ids[r] = -1
            elif is_warm(temperature[r]):
                ids[r] = draw(row, kept_of(row, arrays, r), random_bits(seed[r], position[r], 0))
            else:
                ids[r] = argmax_of(row)
            r = next_row(rows, r)

    @kernel
    def probs(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        temperature, out = arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, temperature[r])
            if row.top == NOTHING or not is_warm(temperature[r]):
                _only_argmax(row, out[r])
            else:
                normalise(row, kept_of(row, arrays, r), out[r])
            r = next_row(rows, r)

    @kernel
    def support(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        temperature, out = arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, temperature[r])
            if row.top == NOTHING or not is_warm(temperature[r]):
                _only_argmax(row, out[r])
            else:
                mark(row, kept_of(row, arrays, r), out[r])
            r = next_row(rows, r)

    return calls(run, sample, probs, support, (*names, "temperature"))


def _keeper(keep: Callable[..., Any], parameters: int) -> Callable[..., Any]:
    """keep(row, *parameters of row r) as a function of (row, arrays, r): Numba does not spread a tuple of its own."""
    spread: dict[int, Callable[..., Any]] = {
        0: lambda row, arrays, r: keep(row),
        1: lambda row, arrays, r: keep(row, arrays[0][r]),
        2: lambda row, arrays, r: keep(row, arrays[0][r], arrays[1][r]),
        3: lambda row, arrays, r: keep(row, arrays[0][r], arrays[1][r], arrays[2][r]),
    }
    return register_jitable(spread[parameters])  # type: ignore[no-any-return]


@register_jitable
def _only_argmax(row: Any, out: Any) -> None:
    """1 at the argmax and 0 elsewhere; all 0 in a row without a valid distribution."""
    out[:] = 0
    if row.top != NOTHING:
        out[argmax_of(row)] = 1
