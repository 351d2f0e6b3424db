"""Greedy decoding on CUDA, one block a row. Reads a row twice: for its maximum, and for where that stands first."""

from __future__ import annotations

import numpy as np
import torch
from numba import cuda
from torch import Tensor

from neurogen import RowParams
from neurogen.kernels.cuda import NOTHING, block_first, block_top, kernel, launch


@kernel
def _sample(logits, bfloat16, ids):  # type: ignore[no-untyped-def]
    for r in range(cuda.blockIdx.x, logits.shape[0], cuda.gridDim.x):
        row = logits[r]
        top = block_top(row, bfloat16)
        token = np.int64(-1)
        if top != NOTHING:
            token = block_first(row, bfloat16, top)
        if cuda.threadIdx.x == 0:
            ids[r] = token


def sample(logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
    """The argmax of each row, int64 [batch]; -1 for a row without a valid distribution."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    launch(_sample, logits, ids)
    return ids


def probs(logits: Tensor, params: RowParams) -> Tensor:
    """One-hot at the argmax, float32 [batch, vocab]; zeros in an invalid row."""
    return support(logits, params).to(torch.float32)


def support(logits: Tensor, params: RowParams) -> Tensor:
    """The argmax alone, bool [batch, vocab]; none in an invalid row."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    launch(_sample, logits, ids)
    return torch.arange(logits.shape[1], device=logits.device) == ids[:, None]
