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

import numpy as np
from numba.extending import register_jitable

from neurogen.kernels.cpu_bands import above, likelier, mix, spared, typical
from neurogen.kernels.cpu_cuts import draw, everything, heavier, largest, mark, normalise, nucleus
from neurogen.kernels.cpu_kernel import kernel, kernel_with
from neurogen.kernels.cpu_rows import CHUNK, EVERYTHING, NOTHING, Row, argmax_of, at_row, first_of, open_row, scan
from neurogen.kernels.cpu_statistics import entropy, finite, tempered
from neurogen.kernels.cpu_threads import next_row, run
from neurogen.kernels.host import Calls, calls, with_row_parameters
from neurogen.kernels.numerics import is_warm, random_bits, uniform

__all__ = [
    "NOTHING",
    "Row",
    "above",
    "argmax",
    "argmax_of",
    "at_row",
    "draw",
    "entropy",
    "everything",
    "finite",
    "heavier",
    "kernel",
    "kernel_with",
    "largest",
    "likelier",
    "mark",
    "next_row",
    "normalise",
    "nucleus",
    "open_row",
    "run",
    "spared",
    "tempered",
    "truncation",
    "typical",
]


def truncation(
    keep: Callable[..., Any], *names: str, chance: str | None = None, temper: Callable[..., Any] | None = None
) -> Calls:
    """The kernels of a sampler that keeps some tokens of a row and draws from them by probability.

    Args:
        keep: called as keep(row, *parameters) inside a kernel, so it is compiled by Numba; returns what `largest`,
            `nucleus`, `heavier` or `everything` return. Not called at temperature 0, where the argmax is kept, nor for
            a row without a valid distribution.
        *names: the sampler's parameters that `keep` takes, at most three.
        chance: name of a parameter that is the probability with which `keep` is called, and else everything is kept.
            A second random number of the same seed and position decides.
        temper: called as temper(row, *parameters), with the row at temperature 1, before `keep`; returns the
            temperature of the row, float64. By default that is the sampler's parameter `temperature`.

    Returns:
        The functions of a backend module: `sample, probs, support = truncation(keep, "k")`.
    """
    kept_of = register_jitable(with_row_parameters(register_jitable(keep), len(names)))
    if temper is not None:
        return _tempering(kept_of, register_jitable(with_row_parameters(register_jitable(temper), len(names))), names)
    if chance is not None:
        return _by_chance(kept_of, (*names, chance, "temperature"))

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

    def describing(write: Callable[..., None]) -> Any:
        @kernel_with(-1)
        def describe(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
            space = open_row(flat, vocab)
            temperature, out = arrays[-2], arrays[-1]
            r = next_row(rows, -1)
            while r >= 0:
                row = at_row(space, flat, r * row_stride, temperature[r])
                if row.top == NOTHING or not is_warm(temperature[r]):
                    _only_argmax(row, out[r])
                else:
                    write(row, kept_of(row, arrays, r), out[r])
                r = next_row(rows, r)

        return describe

    return calls(run, sample, describing(normalise), describing(mark), (*names, "temperature"))


def _tempering(kept_of: Any, temperature_of: Any, names: tuple[str, ...]) -> Calls:
    """The kernels of a sampler whose temperature follows from the row."""

    @kernel
    def sample(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        seed, position, ids = arrays[-3], arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, 1.0)
            own = temperature_of(row, arrays, r) if row.top != NOTHING else 0.0
            if row.top == NOTHING:
                ids[r] = -1
            elif is_warm(own):
                warm = tempered(row, own)
                ids[r] = draw(warm, kept_of(warm, arrays, r), random_bits(seed[r], position[r], 0))
            else:
                ids[r] = argmax_of(row)
            r = next_row(rows, r)

    def describing(write: Callable[..., None]) -> Any:
        @kernel_with(-1)
        def describe(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
            space = open_row(flat, vocab)
            out = arrays[-1]
            r = next_row(rows, -1)
            while r >= 0:
                row = at_row(space, flat, r * row_stride, 1.0)
                own = temperature_of(row, arrays, r) if row.top != NOTHING else 0.0
                if is_warm(own):
                    warm = tempered(row, own)
                    write(warm, kept_of(warm, arrays, r), out[r])
                else:
                    _only_argmax(row, out[r])
                r = next_row(rows, r)

        return describe

    return calls(run, sample, describing(normalise), describing(mark), names)


def _by_chance(kept_of: Any, names: tuple[str, ...]) -> Calls:
    """The kernels of a sampler that removes tokens with a probability only; `probs` is the mixture of both outcomes."""

    @kernel
    def sample(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        chance, temperature, seed, position, ids = arrays[-5], arrays[-4], arrays[-3], arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, temperature[r])
            if row.top == NOTHING:
                ids[r] = -1
            elif is_warm(temperature[r]):
                removes = uniform(random_bits(seed[r], position[r], 1)) < chance[r]
                kept = kept_of(row, arrays, r) if removes else EVERYTHING
                ids[r] = draw(row, kept, random_bits(seed[r], position[r], 0))
            else:
                ids[r] = argmax_of(row)
            r = next_row(rows, r)

    @kernel_with(-1)
    def probs(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        chance, temperature, out = arrays[-3], arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, temperature[r])
            if row.top == NOTHING or not is_warm(temperature[r]):
                _only_argmax(row, out[r])
            else:
                normalise(row, EVERYTHING, out[r])
                mix(row, kept_of(row, arrays, r), min(max(chance[r], 0.0), 1.0), out[r])
            r = next_row(rows, r)

    @kernel_with(-1)
    def support(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        chance, temperature, out = arrays[-3], arrays[-2], arrays[-1]
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, temperature[r])
            if row.top == NOTHING or not is_warm(temperature[r]):
                _only_argmax(row, out[r])
            else:
                mark(row, kept_of(row, arrays, r) if chance[r] >= 1.0 else EVERYTHING, out[r])
            r = next_row(rows, r)

    return calls(run, sample, probs, support, names)


def argmax() -> Calls:
    """The kernels of a sampler that takes the largest logit, the lowest id among equals. Each reads a row once."""
    return calls(run, _sample_argmax, _describe_argmax, _describe_argmax, ())


@kernel_with(weight=0.5)
def _sample_argmax(flat, row_stride, vocab, rows, seed, position, ids):  # type: ignore[no-untyped-def]
    maxima, scratch = np.empty((vocab + CHUNK - 1) // CHUNK, np.uint32), np.empty(CHUNK, np.float32)
    r = next_row(rows, -1)
    while r >= 0:
        logits = flat[r * row_stride : r * row_stride + vocab]
        top = scan(logits, maxima, scratch)
        ids[r] = -1 if top == NOTHING else first_of(logits, top, maxima, scratch)
        r = next_row(rows, r)


@kernel_with(-1)
def _describe_argmax(flat, row_stride, vocab, rows, out):  # type: ignore[no-untyped-def]
    space = open_row(flat, vocab)
    r = next_row(rows, -1)
    while r >= 0:
        _only_argmax(at_row(space, flat, r * row_stride, 1.0), out[r])
        r = next_row(rows, r)


@register_jitable
def _only_argmax(row: Any, out: Any) -> None:
    """1 at the argmax and 0 elsewhere; all 0 in a row without a valid distribution."""
    out[:] = 0
    if row.top != NOTHING:
        out[argmax_of(row)] = 1
