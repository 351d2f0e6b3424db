"""`probs` beside the float64 distribution at the vocabularies of real models, for every kind of recorded logits.

Total variation is half the sum of absolute differences: the most by which the probability of any set of tokens is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import neurogen
from neurogen import reference
from neurogen.testing.recorded import KINDS, make_logits

PRECISION = 1e-6
TEMPERATURES = (0.3, 1.0, 2.5)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("topk", {"k": 0}),
    "topk": ("topk", {"k": 50}),
    "topp": ("topp", {"p": 0.9}),
}


@pytest.mark.parametrize("vocab", [32_000, 128_256, 262_144])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_within_a_millionth_in_total_variation(kind: str, vocab: int) -> None:
    row = make_logits(kind, vocab, vocab)
    logits = torch.from_numpy(row).expand(len(TEMPERATURES), -1)
    rows = {"temperature": torch.tensor(TEMPERATURES, dtype=torch.float64)}
    for name, params in METHODS.values():
        sampler = neurogen.load_sampler(name, **params)
        probs = sampler.probs(logits, **rows).numpy()
        kept = sampler.support(logits, **rows).numpy()
        for r, temperature in enumerate(TEMPERATURES):
            # What a nucleus keeps may be ambiguous by a token; its set is held against the reference elsewhere.
            expected = reference.probs(row, kept[r], temperature)
            assert 0.5 * np.abs(probs[r] - expected).sum() < PRECISION
            assert not probs[r][~kept[r]].any()
