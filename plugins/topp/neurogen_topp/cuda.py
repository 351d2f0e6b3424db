"""Top-p sampling on CUDA, one block a row.

Reads a row for its maximum, four times for the logit at which the mass reaches p (a digit each), and once to draw.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import cuda
from torch import Tensor

from neurogen import RowParams
from neurogen.kernels.cuda import (
    NOTHING,
    block_draw,
    block_fill,
    block_keep_nucleus,
    block_mark,
    block_normalise,
    block_top,
    kernel,
    launch,
)
from neurogen.kernels.numerics import random_bits


@kernel
def _sample(logits, bfloat16, p, temperature, seed, position, ids):  # type: ignore[no-untyped-def]
    for r in range(cuda.blockIdx.x, logits.shape[0], cuda.gridDim.x):
        row = logits[r]
        top = block_top(row, bfloat16)
        token = np.int64(-1)
        if top != NOTHING:
            cut_key, cut_id = block_keep_nucleus(row, bfloat16, top, temperature[r], p[r])
            random = random_bits(seed[r], position[r], 0)
            token = block_draw(row, bfloat16, top, temperature[r], cut_key, cut_id, random)
        if cuda.threadIdx.x == 0:
            ids[r] = token


@kernel
def _probs(logits, bfloat16, p, temperature, out):  # type: ignore[no-untyped-def]
    for r in range(cuda.blockIdx.x, logits.shape[0], cuda.gridDim.x):
        row = logits[r]
        top = block_top(row, bfloat16)
        if top != NOTHING:
            cut_key, cut_id = block_keep_nucleus(row, bfloat16, top, temperature[r], p[r])
            block_normalise(row, bfloat16, top, temperature[r], cut_key, cut_id, out[r])
        else:
            block_fill(out[r], np.float32(0.0))


@kernel
def _support(logits, bfloat16, p, temperature, out):  # type: ignore[no-untyped-def]
    for r in range(cuda.blockIdx.x, logits.shape[0], cuda.gridDim.x):
        row = logits[r]
        top = block_top(row, bfloat16)
        if top != NOTHING:
            cut_key, cut_id = block_keep_nucleus(row, bfloat16, top, temperature[r], p[r])
            block_mark(row, bfloat16, cut_key, cut_id, out[r])
        else:
            block_fill(out[r], False)


def sample(logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
    """One token a row, int64 [batch]; -1 for a row without a valid distribution."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    launch(_sample, logits, params.p, params.temperature, seed, position, ids)
    return ids


def probs(logits: Tensor, params: RowParams) -> Tensor:
    """The distribution that `sample` draws from, float32 [batch, vocab]; zeros in an invalid row."""
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    launch(_probs, logits, params.p, params.temperature, out)
    return out


def support(logits: Tensor, params: RowParams) -> Tensor:
    """The tokens that `sample` can draw, bool [batch, vocab]; none in an invalid row."""
    out = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
    launch(_support, logits, params.p, params.temperature, out)
    return out
