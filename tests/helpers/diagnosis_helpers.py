"""Logits and targets to diagnose, and what the tests of the diagnosis compare."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neurogen.diagnosis.accuracies import SETTINGS
from neurogen.diagnosis.diagnose import Diagnosis
from neurogen.diagnosis.measures import Measures

SCORES = [(setting.sampler, setting.params.get("temperature")) for setting in SETTINGS]


def random_logits(dtype: torch.dtype = torch.float32, vocab: int = 137, rows: int = 24) -> tuple[Tensor, Tensor]:
    """Rows with ties, with -inf, flat and peaked ones, and targets among all tokens that can be drawn."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, vocab, generator=generator) * torch.linspace(0.01, 6, rows)[:, None]
    logits[::3] = logits[::3].round()
    logits[1, : vocab // 2] = -torch.inf
    logits[2] = 0.0
    targets = torch.randint(vocab // 2, vocab, (rows,), generator=generator)
    return logits.to(dtype), targets


def scores(diagnosis: Diagnosis) -> dict[tuple[str, float | None], float]:
    return dict(zip(SCORES, (score.accuracy for score in diagnosis.accuracies), strict=True))


def confident(targets: Tensor, chosen: Tensor, share: float, vocab: int = 50) -> Tensor:
    """Logits that give `chosen` the probability `share`, and all others the same of what is left."""
    probs = torch.full((len(targets), vocab), (1 - share) / (vocab - 1))
    probs[torch.arange(len(targets)), chosen] = share
    return probs.log()


def text_like(positions: int, vocab: int, seed: int = 0) -> Tensor:
    """Targets whose frequencies fall as those of words do."""
    chances = 1 / torch.arange(1.0, vocab + 1)
    return torch.multinomial(chances, positions, replacement=True, generator=torch.Generator().manual_seed(seed))


def _assert_same(measures: Measures, other: Measures, rel: float = 1e-12) -> None:
    assert measures.kind == other.kind
    for name in Measures.__dataclass_fields__.keys() - {"kind"}:
        np.testing.assert_allclose(getattr(measures, name), getattr(other, name), rtol=rel, err_msg=name)
