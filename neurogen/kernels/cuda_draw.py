"""From the cut of a row to a token, probabilities, or a support, on CUDA."""

from __future__ import annotations

import numpy as np
from numba import cuda

from neurogen.kernels.cuda_block import device, mass
from neurogen.kernels.cuda_list import LAST_ID, find, id_of, is_listed, keep_listed
from neurogen.kernels.cuda_parts import locate, part_weights, survives
from neurogen.kernels.cuda_rows import logit_at
from neurogen.kernels.numerics import mul_high

__all__ = ["draw", "fill", "mark", "normalise"]


@device
def draw(row, cut, random):  # type: ignore[no-untyped-def]
    """Inverse CDF in id order with one random number: the first id whose cumulative mass exceeds random / 2**64.

    Reads nothing where what is kept is listed; else one part of the row, and before that the row once where the masses
    of parts are not known. All threads return the id.
    """
    if is_listed(row, cut):
        count, total = keep_listed(row, cut)
        if total == 0:
            return np.int64(-1)
        space = row.space
        i = cuda.threadIdx.x
        while i < count:
            space.codes[i] = LAST_ID - np.uint64(id_of(space.codes[i]))  # in order of ids alone
            i += cuda.blockDim.x
        cuda.syncthreads()
        target = np.int64(mul_high(random, np.uint64(total)))
        first = LAST_ID - np.uint64(row.vocab)
        return id_of(find(space, count, first, LAST_ID + np.uint64(1), target + 1, False))
    total = part_weights(row, cut, False)
    if total == 0:
        return np.int64(-1)
    target = np.int64(mul_high(random, np.uint64(total)))
    return locate(row, cut, False, target + 1)


@device
def normalise(row, cut, out, first):  # type: ignore[no-untyped-def]
    """Write the probabilities of what a cut keeps, float32, to out[first:][:vocab].

    Reads nothing where what is kept is listed, else the row once or twice.
    """
    if is_listed(row, cut):
        count, total = keep_listed(row, cut)
        fill(out, first, row.vocab, np.float32(0))
        i = cuda.threadIdx.x
        while i < count:
            share = np.float64(row.space.masses[i]) / np.float64(total)
            out[first + id_of(row.space.codes[i])] = np.float32(share)
            i += cuda.blockDim.x
    else:
        total = max(part_weights(row, cut, False), np.int64(1))
        i = cuda.threadIdx.x
        while i < row.vocab:
            x = logit_at(row, i)
            own = mass(x, row.top, row.scale, row.bits) if survives(x, i, cut) else np.int64(0)
            out[first + i] = np.float32(np.float64(own) / np.float64(total))
            i += cuda.blockDim.x


@device
def mark(row, cut, out, first):  # type: ignore[no-untyped-def]
    """Write which tokens a cut keeps to out[first:][:vocab].

    Reads nothing where those are listed, else the row once.
    """
    if is_listed(row, cut):
        count, _ = keep_listed(row, cut)
        fill(out, first, row.vocab, False)
        i = cuda.threadIdx.x
        while i < count:
            out[first + id_of(row.space.codes[i])] = True
            i += cuda.blockDim.x
    else:
        i = cuda.threadIdx.x
        while i < row.vocab:
            out[first + i] = survives(logit_at(row, i), i, cut)
            i += cuda.blockDim.x


@device
def fill(out, first, count, value):  # type: ignore[no-untyped-def]
    """Write one value to out[first:][:count]. Ends with a barrier."""
    i = cuda.threadIdx.x
    while i < count:
        out[first + i] = value
        i += cuda.blockDim.x
    cuda.syncthreads()
