"""Sampler kernels on CUDA: how they are made, and launched on torch's current stream.

A kernel works on one row a block. That of a truncation sampler is made by `truncation` from its definition, which says
what is kept of a row:

    logits -> row -> largest | nucleus | heavier | ... -> draw | normalise | mark

Launch configuration: a block for each row, up to MAX_GRID; BLOCK threads, or half as many where the batch has more rows
than the card has multiprocessors, so that two rows share one. Any multiple of 32 threads up to BLOCK is correct.
On demand `sample` splits its rows over several blocks (`cuda_split`).
Static shared memory stays below 48 KiB. Nothing is allocated but what is returned, and a workspace where rows are
split; nothing waits for the host and nothing is remembered between launches, so that a call can be captured in a CUDA
graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_bands import above, likelier, mix, spared, typical, whole
from neurogen.kernels.cuda_block import checked, device
from neurogen.kernels.cuda_cuts import everything, heavier, largest, nucleus
from neurogen.kernels.cuda_draw import draw, fill, mark, normalise
from neurogen.kernels.cuda_launch import BLOCK, SPLIT_BLOCK, Kernel, Split, launch
from neurogen.kernels.cuda_parts import CUT, Band
from neurogen.kernels.cuda_rows import NOTHING, Row, argmax_of, at_row, first_top, open_space
from neurogen.kernels.cuda_split import (
    RANKS,
    argmax_of_ranks,
    gathered_row,
    note_rank,
    row_and_piece,
    survey,
    surveyed_row,
    weigh_piece,
    words_a_row,
)
from neurogen.kernels.cuda_statistics import entropy, finite, tempered
from neurogen.kernels.host import (
    WANTED,
    BackendFunctions,
    Temperatures,
    backend_functions,
    check_definition,
    made_of,
    place_of,
    with_row_parameters,
)
from neurogen.kernels.numerics import is_warm, random_bits, uniform

__all__ = [
    "BLOCK",
    "NOTHING",
    "Kernel",
    "Row",
    "above",
    "argmax",
    "entropy",
    "everything",
    "finite",
    "heavier",
    "largest",
    "launch",
    "likelier",
    "nucleus",
    "spared",
    "tempered",
    "truncation",
    "typical",
]

PROBABILITIES = (np.float32(0), np.float32(1))
"""What is written of a token that cannot be drawn, and of one that always is, as a probability."""
MARKS = (False, True)
"""The same in a support."""


def _survey(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
    survey(logits, offset, row_stride, vocab, batch, arrays[0], open_space())


SURVEY = Kernel(_survey, block=SPLIT_BLOCK)


def truncation(
    keep: Callable[..., Any], *names: str, chance: str | None = None, temper: Callable[..., Any] | None = None
) -> BackendFunctions:
    """The kernels of a sampler that keeps some tokens of a row and draws from them by probability.

    Each reads a row once for its largest logit, then as often as `keep` says, and then as often as `draw`, `normalise`
    or `mark` say: at a usual row twice in all for `largest` and `nucleus`, and hardly more for the others.

    Args:
        keep: called as keep(row, *parameters) inside a kernel by all threads of a block, so it is compiled by Numba;
            returns what `largest`, `nucleus`, `heavier` or `everything` return. Not called at temperature 0, where the
            argmax is kept, nor for a row without a valid distribution.
        *names: the sampler's parameters that `keep` takes, at most three.
        chance: name of a parameter that is the probability with which `keep`, which must return a `Band` then, as
            `spared` and `typical` do, is called; else everything is kept. A second random number of the same seed and
            position decides.
        temper: called as temper(row, *parameters), with the row at temperature 1, before `keep`; returns the
            temperature of the row, float64. By default that is the sampler's parameter `temperature`.

    Returns:
        The functions of a backend module: `sample, probs, support = truncation(keep, "k")`.

    Raises:
        ParameterError: `keep` or `temper` is no function of the row and so many parameters, or a name is none.
        ContractError: when it is compiled, at the first launch: what it returns is not what it must return.
    """
    check_definition(keep, names, "keep")
    of_chance = chance is not None and temper is None
    cut_of = _of_rows(keep, len(names), *((_is_band, WANTED_BAND) if of_chance else (_is_kept, WANTED)))
    if temper is not None:
        check_definition(temper, names, "temper")
        temperature_of = _of_rows(temper, len(names), _is_number, "a temperature, a number")
        return made_of(_tempering(cut_of, temperature_of, names), keep)
    if chance is not None:
        return made_of(_by_chance(cut_of, (*names, chance, "temperature")), keep)
    return made_of(_plain(cut_of, names), keep)


def _plain(cut_of: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The kernels of a sampler whose rows all have a given temperature."""
    warmth, seed, position = range(len(names), len(names) + 3)

    @device
    def draws(row, own, arrays, r):  # type: ignore[no-untyped-def]
        return draw(row, cut_of(row, arrays, r), random_bits(arrays[seed][r], arrays[position][r], 0))

    def writing(write: Callable[..., None]) -> Any:
        @device
        def writes(row, own, arrays, r, out, first):  # type: ignore[no-untyped-def]
            write(row, cut_of(row, arrays, r), out, first)

        return writes

    return _functions_of((*names, "temperature"), _given(warmth), draws, writing(normalise), writing(mark), split=True)


def _tempering(cut_of: Any, temperature_of: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The kernels of a sampler whose temperature follows from the row."""
    seed, position = range(len(names), len(names) + 2)

    @device
    def draws(row, own, arrays, r):  # type: ignore[no-untyped-def]
        warm = tempered(row, own)
        return draw(warm, cut_of(warm, arrays, r), random_bits(arrays[seed][r], arrays[position][r], 0))

    def writing(write: Callable[..., None]) -> Any:
        @device
        def writes(row, own, arrays, r, out, first):  # type: ignore[no-untyped-def]
            warm = tempered(row, own)
            write(warm, cut_of(warm, arrays, r), out, first)

        return writes

    temperatures = Temperatures(_one, temperature_of)
    return _functions_of(names, temperatures, draws, writing(normalise), writing(mark), split=False)


def _by_chance(band_of: Any, names: tuple[str, ...]) -> BackendFunctions:
    """The kernels of a sampler that removes tokens with a probability only; `probs` is the mixture of both outcomes."""
    chance, warmth, seed, position = range(len(names) - 2, len(names) + 2)

    @device
    def draws(row, own, arrays, r):  # type: ignore[no-untyped-def]
        removes = uniform(random_bits(arrays[seed][r], arrays[position][r], 1)) < arrays[chance][r]
        band = band_of(row, arrays, r) if removes else whole(row)
        return draw(row, band, random_bits(arrays[seed][r], arrays[position][r], 0))

    def writing(write: Callable[..., None]) -> Any:
        @device
        def writes(row, own, arrays, r, out, first):  # type: ignore[no-untyped-def]
            write(row, band_of(row, arrays, r), min(max(arrays[chance][r], 0.0), 1.0), out, first)

        return writes

    return _functions_of(names, _given(warmth), draws, writing(mix), writing(_mark_either), split=False)


def _given(place: int) -> Temperatures:
    """The temperature of a row is a parameter, that at a place in `arrays`."""

    @device
    def before(arrays, r):  # type: ignore[no-untyped-def]
        return arrays[place][r]

    @device
    def after(row, arrays, r):  # type: ignore[no-untyped-def]
        return arrays[place][r]

    return Temperatures(before, after)


@device
def _one(arrays, r):  # type: ignore[no-untyped-def]
    return np.float64(1.0)


def _functions_of(
    names: tuple[str, ...], temperatures: Temperatures, draws: Any, normalises: Any, marks: Any, *, split: bool
) -> BackendFunctions:
    """The kernels around what is done with a row whose temperature is above 0.

    Args:
        names: parameters of a row. Seed, position and ids follow in `arrays`, or the output of a whole row.
        temperatures: of a row.
        draws: of (row, temperature, arrays, r), a token that all threads know.
        normalises, marks: of (row, temperature, arrays, r, output, where the row begins in that).
        split: make the form in which blocks share a row, see `cuda_split`.
    """
    read_at, temperature_of = temperatures

    @device
    def own_temperature(row, arrays, r):  # type: ignore[no-untyped-def]
        return np.float64(temperature_of(row, arrays, r)) if row.top != NOTHING else np.float64(0.0)

    @device
    def choose(row, arrays, r):  # type: ignore[no-untyped-def]
        own = own_temperature(row, arrays, r)
        if is_warm(own):
            return draws(row, own, arrays, r)
        return first_top(row) if row.top != NOTHING else np.int64(-1)

    def describing(writes: Any, zero: Any, one: Any) -> Kernel:
        @device
        def describe(row, arrays, r, out, first):  # type: ignore[no-untyped-def]
            own = own_temperature(row, arrays, r)
            if is_warm(own):
                writes(row, own, arrays, r, out, first)
            else:
                _only_argmax(row, out, first, zero, one)

        return _describing(read_at, describe, len(names))

    sample = _sampling(read_at, choose, len(names) + 2, split=split)
    return backend_functions(launch, sample, describing(normalises, *PROBABILITIES), describing(marks, *MARKS), names)


def _sampling(read_at: Any, choose: Any, ids: int, *, split: bool) -> Kernel:
    """A kernel that writes the token choose(row, arrays, r) of each row, to the array at the place `ids`."""
    work = ids + 1

    def sample(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        space = open_space()
        r = np.int64(cuda.blockIdx.x)
        while r < batch:
            token = choose(at_row(logits, offset, r * row_stride, vocab, read_at(arrays, r), space), arrays, r)
            if cuda.threadIdx.x == 0:
                arrays[ids][r] = token
            cuda.syncthreads()
            r += cuda.gridDim.x

    def finish(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        space, workspace = open_space(), arrays[work]
        r, piece, halvings = row_and_piece(batch)
        row = surveyed_row(logits, offset, row_stride, vocab, read_at(arrays, r), r, workspace, space)
        is_last, bound = weigh_piece(row, r, piece, halvings, workspace)
        if is_last:
            token = np.int64(-1)
            if row.top != NOTHING:
                token = choose(gathered_row(row, bound, r, workspace), arrays, r)
            if cuda.threadIdx.x == 0:
                arrays[ids][r] = token

    if not split:
        return Kernel(sample)
    return Kernel(sample, Split(SURVEY, Kernel(finish, block=SPLIT_BLOCK), words_a_row()))


def _describing(read_at: Any, describe: Any, out: int) -> Kernel:
    """A kernel that writes each row of the array at the place `out`."""

    def write(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        space = open_space()
        r = np.int64(cuda.blockIdx.x)
        while r < batch:
            row = at_row(logits, offset, r * row_stride, vocab, read_at(arrays, r), space)
            describe(row, arrays, r, arrays[out], r * vocab)
            cuda.syncthreads()
            r += cuda.gridDim.x

    return Kernel(write)


WANTED_BAND = "what `spared` or `typical` of neurogen.kernels.cuda returns, since it keeps by chance"


def _is_band(of: Any) -> bool:
    return getattr(of, "instance_class", None) is Band


def _is_kept(of: Any) -> bool:
    """Whether a type of Numba's is that of a cut, a key and an id, or of a band."""
    parts = getattr(of, "types", ())
    return _is_band(of) or (len(parts) == CUT and all(_is_a("Integer", part) for part in parts))


def _is_number(of: Any) -> bool:
    return _is_a("Number", of)


def _is_a(kind: str, of: Any) -> bool:
    """By the name of the class: Numba's compilers have types of their own."""
    return any(cls.__name__ == kind for cls in type(of).__mro__)


def _of_rows(definition: Callable[..., Any], count: int, is_right: Callable[[Any], bool], wanted: str) -> Any:
    """A definition as a device function of (row, arrays, r); compiling refuses one that returns a wrong type."""
    compiled = definition if hasattr(definition, "py_func") else device(definition)
    return device(with_row_parameters(compiled, count, checked(place_of(definition), is_right, wanted)))


@device
def _mark_either(row, band, share, out, first):  # type: ignore[no-untyped-def]
    """Write what can be drawn where `band` is what is kept with this chance, and else everything."""
    mark(row, band if share >= 1.0 else whole(row), out, first)


@device
def _only_argmax(row, out, first, zero, one):  # type: ignore[no-untyped-def]
    """`one` at the argmax and `zero` elsewhere; all `zero` in a row without a valid distribution."""
    fill(out, first, row.vocab, zero)
    if row.top != NOTHING:
        token = first_top(row)
        if cuda.threadIdx.x == 0:
            out[first + token] = one


def argmax() -> BackendFunctions:
    """The kernels of a sampler that takes the largest logit, the lowest id among equals. Each reads a row once."""

    def sample(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        space = open_space()
        r = np.int64(cuda.blockIdx.x)
        while r < batch:
            token = argmax_of(logits, offset, r * row_stride, vocab, space)
            if cuda.threadIdx.x == 0:
                arrays[-1][r] = token
            r += cuda.gridDim.x

    def survey_ranks(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        note_rank(logits, offset, row_stride, vocab, batch, arrays[0], open_space())

    def finish(logits, offset, row_stride, vocab, batch, arrays):  # type: ignore[no-untyped-def]
        r, piece, halvings = row_and_piece(batch)
        if piece == 0:
            token = argmax_of_ranks(r, halvings, arrays[-1], open_space())
            if cuda.threadIdx.x == 0:
                arrays[-2][r] = token

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

    split = Split(Kernel(survey_ranks, block=SPLIT_BLOCK), Kernel(finish, block=SPLIT_BLOCK), RANKS)
    return backend_functions(launch, Kernel(sample, split), describing(*PROBABILITIES), describing(*MARKS), ())
