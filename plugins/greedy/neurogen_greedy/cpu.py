"""Greedy decoding on the CPU. Reads each row twice: for its maximum, and up to where that stands first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neurogen import RowParams
from neurogen.kernels import cpu
from neurogen.kernels.cpu import NOTHING, argmax_of, kernel, open_row, top_of


@kernel
def _sample(flat, row_stride, vocab, bfloat16, start, stop, ids):  # type: ignore[no-untyped-def]
    buffer = np.empty(vocab, np.float32)
    for r in range(start, stop):
        row = open_row(flat, r * row_stride, vocab, bfloat16, buffer)
        top = top_of(row)
        ids[r] = -1 if top == NOTHING else argmax_of(row, top)


def sample(logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
    """The argmax of each row, int64 [batch]; -1 for a row without a valid distribution."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64)
    cpu.run(_sample, logits, ids)
    return ids


def probs(logits: Tensor, params: RowParams) -> Tensor:
    """One-hot at the argmax, float32 [batch, vocab]."""
    return support(logits, params).to(torch.float32)


def support(logits: Tensor, params: RowParams) -> Tensor:
    """The argmax alone, bool [batch, vocab]."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64)
    cpu.run(_sample, logits, ids)
    return torch.arange(logits.shape[1]) == ids[:, None]
