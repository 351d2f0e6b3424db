"""Greedy decoding on the CPU. Reads each row once, and again the 128 logits around its largest."""

from __future__ import annotations

import torch
from torch import Tensor

from neurogen import RowParams
from neurogen.kernels.cpu import NOTHING, argmax_of, at_row, kernel, next_row, open_row, run


@kernel
def _sample(flat, row_stride, vocab, rows, ids):  # type: ignore[no-untyped-def]
    space = open_row(flat, vocab)
    r = next_row(rows, -1)
    while r >= 0:
        row = at_row(space, flat, r * row_stride, 1.0)
        ids[r] = -1 if row.top == NOTHING else argmax_of(row)
        r = next_row(rows, r)


def sample(logits: Tensor, seed: Tensor, position: Tensor, params: RowParams) -> Tensor:
    """The argmax of each row, int64 [batch]; -1 for a row without a valid distribution."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64)
    run(_sample, logits, ids)
    return ids


def probs(logits: Tensor, params: RowParams) -> Tensor:
    """One-hot at the argmax, float32 [batch, vocab]."""
    return support(logits, params).to(torch.float32)


def support(logits: Tensor, params: RowParams) -> Tensor:
    """The argmax alone, bool [batch, vocab]."""
    ids = torch.empty(logits.shape[0], dtype=torch.int64)
    run(_sample, logits, ids)
    return torch.arange(logits.shape[1]) == ids[:, None]
