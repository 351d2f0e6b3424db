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
from numba import types
from numba.extending import overload, register_jitable

from neurogen.kernels.cpu_bands import above, likelier, mix, spared, typical
from neurogen.kernels.cpu_cuts import draw, everything, heavier, largest, mark, normalise, nucleus
from neurogen.kernels.cpu_kernel import kernel, kernel_with
from neurogen.kernels.cpu_rows import CHUNK, EVERYTHING, NOTHING, Kept, Row, argmax_of, at_row, first_of, open_row, scan
from neurogen.kernels.cpu_statistics import entropy, finite, tempered
from neurogen.kernels.cpu_threads import next_row, run
from neurogen.kernels.host import (
    WANTED,
    BackendFunctions,
    Temperatures,
    backend_functions,
    check_definition,
    check_returned,
    made_of,
    place_of,
    with_row_parameters,
)
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
) -> BackendFunctions:
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

    Raises:
        ParameterError: `keep` or `temper` is no function of the row and so many parameters, or a name is none.
        ContractError: when it is compiled, at the first call: what it returns is not what it must return.
    """
    check_definition(keep, names, "keep")
    kept_of = _of_rows(keep, len(names), _is_kept, WANTED)
    if temper is not None:
        check_definition(temper, names, "temper")
        temperature_of = _of_rows(temper, len(names), _is_number, "a temperature, a number")
        return made_of(_tempering(kept_of, temperature_of, names), keep)
    if chance is not None:
        return made_of(_by_chance(kept_of, (*names, chance, "temperature")), keep)
    return made_of(_plain(kept_of, names), keep)


def _plain(kept_of: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The kernels of a sampler whose rows all have a given temperature."""
    warmth, seed, position = range(len(names), len(names) + 3)

    @register_jitable
    def draws(row: Any, own: Any, arrays: Any, r: Any) -> Any:
        return draw(row, kept_of(row, arrays, r), random_bits(arrays[seed][r], arrays[position][r], 0))

    def writing(write: Callable[..., None]) -> Any:
        @register_jitable
        def writes(row: Any, own: Any, arrays: Any, r: Any, out: Any) -> None:
            write(row, kept_of(row, arrays, r), out)

        return writes

    return _functions_of((*names, "temperature"), _given(warmth), draws, writing(normalise), writing(mark))


def _tempering(kept_of: Any, temperature_of: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The kernels of a sampler whose temperature follows from the row."""
    seed, position = range(len(names), len(names) + 2)

    @register_jitable
    def draws(row: Any, own: Any, arrays: Any, r: Any) -> Any:
        warm = tempered(row, own)
        return draw(warm, kept_of(warm, arrays, r), random_bits(arrays[seed][r], arrays[position][r], 0))

    def writing(write: Callable[..., None]) -> Any:
        @register_jitable
        def writes(row: Any, own: Any, arrays: Any, r: Any, out: Any) -> None:
            warm = tempered(row, own)
            write(warm, kept_of(warm, arrays, r), out)

        return writes

    return _functions_of(names, Temperatures(_one, temperature_of), draws, writing(normalise), writing(mark))


def _by_chance(kept_of: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The kernels of a sampler that removes tokens with a probability only; `probs` is the mixture of both outcomes."""
    chance, warmth, seed, position = range(len(names) - 2, len(names) + 2)

    @register_jitable
    def draws(row: Any, own: Any, arrays: Any, r: Any) -> Any:
        removes = uniform(random_bits(arrays[seed][r], arrays[position][r], 1)) < arrays[chance][r]
        kept = kept_of(row, arrays, r) if removes else EVERYTHING
        return draw(row, kept, random_bits(arrays[seed][r], arrays[position][r], 0))

    @register_jitable
    def normalises(row: Any, own: Any, arrays: Any, r: Any, out: Any) -> None:
        normalise(row, EVERYTHING, out)
        mix(row, kept_of(row, arrays, r), min(max(arrays[chance][r], 0.0), 1.0), out)

    @register_jitable
    def marks(row: Any, own: Any, arrays: Any, r: Any, out: Any) -> None:
        mark(row, kept_of(row, arrays, r) if arrays[chance][r] >= 1.0 else EVERYTHING, out)

    return _functions_of(names, _given(warmth), draws, normalises, marks)


def _given(place: int) -> Temperatures:
    """The temperature of a row is a parameter, that at a place in `arrays`."""

    @register_jitable
    def before(arrays: Any, r: Any) -> Any:
        return arrays[place][r]

    @register_jitable
    def after(row: Any, arrays: Any, r: Any) -> Any:
        return arrays[place][r]

    return Temperatures(before, after)


@register_jitable
def _one(arrays: Any, r: Any) -> Any:
    return 1.0


def _is_kept(of: Any) -> bool:
    return getattr(of, "instance_class", None) is Kept


def _is_number(of: Any) -> bool:
    return isinstance(of, types.Number)


def _of_rows(definition: Callable[..., Any], count: int, is_right: Callable[[Any], bool], wanted: str) -> Any:
    """A definition as a function of (row, arrays, r); compiling refuses one that returns a wrong Numba type."""
    where = place_of(definition)

    def returned(value: Any) -> Any:
        return value

    @overload(returned, strict=False)
    def _returned(value: Any) -> Any:
        check_returned(where, is_right(value), str(value), wanted)
        return lambda value: value

    return register_jitable(with_row_parameters(register_jitable(definition), count, returned))


def _functions_of(
    names: tuple[str, ...], temperatures: Temperatures, draws: Any, normalises: Any, marks: Any
) -> BackendFunctions:
    """The kernels around what is done with a row whose temperature is above 0.

    Args:
        names: parameters of a row. Seed, position and ids follow in `arrays`, or the output of a whole row.
        temperatures: of a row.
        draws: of (row, temperature, arrays, r), a token.
        normalises, marks: of (row, temperature, arrays, r, the row of the output).
    """
    read_at, temperature_of = temperatures
    ids, out = len(names) + 2, len(names)

    @kernel
    def sample(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
        space = open_row(flat, vocab)
        r = next_row(rows, -1)
        while r >= 0:
            row = at_row(space, flat, r * row_stride, read_at(arrays, r))
            own = temperature_of(row, arrays, r) if row.top != NOTHING else 0.0
            if row.top == NOTHING:
                arrays[ids][r] = -1
            elif is_warm(own):
                arrays[ids][r] = draws(row, own, arrays, r)
            else:
                arrays[ids][r] = argmax_of(row)
            r = next_row(rows, r)

    def describing(writes: Any) -> Any:
        @kernel_with(-1)
        def describe(flat, row_stride, vocab, rows, *arrays):  # type: ignore[no-untyped-def]
            space = open_row(flat, vocab)
            r = next_row(rows, -1)
            while r >= 0:
                row = at_row(space, flat, r * row_stride, read_at(arrays, r))
                own = temperature_of(row, arrays, r) if row.top != NOTHING else 0.0
                if is_warm(own):
                    writes(row, own, arrays, r, arrays[out][r])
                else:
                    _only_argmax(row, arrays[out][r])
                r = next_row(rows, r)

        return describe

    return backend_functions(run, sample, describing(normalises), describing(marks), names)


def argmax() -> BackendFunctions:
    """The kernels of a sampler that takes the largest logit, the lowest id among equals. Each reads a row once."""
    return backend_functions(run, _sample_argmax, _describe_argmax, _describe_argmax, ())


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
