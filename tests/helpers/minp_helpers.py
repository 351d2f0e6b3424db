"""What min-p keeps, by its definition, and rows to try it on."""

from __future__ import annotations

import numpy as np
import torch

VOCAB = 700


def reference(row: np.ndarray, min_p: float, temperature: float) -> np.ndarray:
    """The definition in the paper, in float64: keep p(v) >= min_p * max p; at temperature 0 the argmax."""
    x = row.astype(np.float64)
    if temperature == 0:
        return np.arange(len(x)) == np.argmax(x)
    p = np.exp((x - x.max()) / temperature)
    p /= p.sum()
    return (p >= min_p * p.max()) & (p > 0)


def rows() -> torch.Tensor:
    """Valid rows: flat, steep, tied, sparse, all equal."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(10, VOCAB, generator=generator)
    x[2:4] *= 4
    x[4:6] = x[4:6].round()
    x[6, ::2] = -torch.inf
    x[7] = -torch.inf
    x[7, 600] = -30.0
    x[8] = 2.5
    return x
