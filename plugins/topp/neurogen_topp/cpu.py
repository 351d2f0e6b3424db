"""Top-p sampling on the CPU.

Each kernel reads a row for its maximum and once more for the masses. Then it looks for
the logit at which the mass reaches p: once for each of the three digits of its key, and once to remove what lies below.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neurogen import RowParams
from neurogen.kernels import cpu
from neurogen.kernels.cpu import draw, fill_masses, keep_nucleus, kernel, mark, normalise, open_row
from neurogen.kernels.numerics import random_bits


@kernel
def _sample(flat, row_stride, vocab, bfloat16, start, stop, p, temperature, seed, position, ids):  # type: ignore[no-untyped-def]
    buffer, masses = np.empty(vocab, np.float32), np.empty(vocab, np.int64)
    for r in range(start, stop):
        row = open_row(flat, r * row_stride, vocab, bfloat16, buffer)
        if fill_masses(row, temperature[r], masses):
            keep_nucleus(row, masses, p[r])
        ids[r] = draw(masses, random_bits(seed[r], position[r], 0))


@kernel
def _probs(flat, row_stride, vocab, bfloat16, start, stop, p, temperature, out):  # type: ignore[no-untyped-def]
    buffer, masses = np.empty(vocab, np.float32), np.empty(vocab, np.int64)
    for r in range(start, stop):
        row = open_row(flat, r * row_stride, vocab, bfloat16, buffer)
        if fill_masses(row, temperature[r], masses):
            keep_nucleus(row, masses, p[r])
        normalise(masses, out[r])


@kernel
def _support(flat, row_stride, vocab, bfloat16, start, stop, p, temperature, out):  # type: ignore[no-untyped-def]
    buffer, masses = np.empty(vocab, np.float32), np.empty(vocab, np.int64)
    for r in range(start, stop):
        row = open_row(flat, r * row_stride, vocab, bfloat16, buffer)
        if fill_masses(row, temperature[r], masses):
            keep_nucleus(row, masses, p[r])
        mark(masses, out[r])


def sample(logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
    """One token a row, int64 [batch]; -1 for a row without a valid distribution."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64)
    cpu.run(_sample, logits, params.p, params.temperature, seed, position, ids)
    return ids


def probs(logits: Tensor, params: RowParams) -> Tensor:
    """The distribution that `sample` draws from, float32 [batch, vocab]; zeros in an invalid row."""
    out = torch.empty(logits.shape, dtype=torch.float32)
    cpu.run(_probs, logits, params.p, params.temperature, out)
    return out


def support(logits: Tensor, params: RowParams) -> Tensor:
    """The tokens that `sample` can draw, bool [batch, vocab]; none in an invalid row."""
    out = torch.empty(logits.shape, dtype=torch.bool)
    cpu.run(_support, logits, params.p, params.temperature, out)
    return out
