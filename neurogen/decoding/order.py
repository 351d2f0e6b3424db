"""The order of tokens wherever some of them are listed: by value descending, then by id ascending.

`torch.topk` does not say which of equal values it gives, nor in which order; `torch.argmax` gives the lowest id.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["largest"]


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values, and where they stand.

    Args:
        values: [size], of any number type; NaN counts as larger than every number.
        count: how many, at least 1; at most all are given.

    Returns:
        the values [count], the largest first, and int64 [count], their places, at equal values the lowest first.
    """
    least = torch.topk(values, min(count, len(values)), sorted=False).values.min()
    places = (~(values < least)).nonzero().flatten()  # all that equal the last one, which topk chooses among
    ranked, order = values[places].sort(descending=True, stable=True)
    return ranked[:count], places[order[:count]]
