"""Penalties and DRY against llama.cpp's own samplers, where its library is installed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import Request

llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install 'neurogen[bench]')")

VOCAB = 30


def of_llama_cpp(sampler: Any, ids: Sequence[int], logits: Tensor) -> Tensor:
    """What a sampler of llama.cpp makes of logits behind a sequence."""
    for token in ids:
        llama.llama_sampler_accept(sampler, token)
    data = (llama.llama_token_data * VOCAB)(*((i, value, 0.0) for i, value in enumerate(logits.tolist())))
    candidates = llama.llama_token_data_array(data, VOCAB, -1, False)
    llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
    llama.llama_sampler_free(sampler)
    return torch.tensor([one.logit for one in sorted(data, key=lambda one: one.id)])


def ours(spec: str, ids: Sequence[int], logits: Tensor) -> Tensor:
    (processor,) = neurogen.load_processors(spec)
    if processor.name == "dry":
        processor._breakers = frozenset()  # type: ignore[attr-defined]  # theirs need a vocabulary
    changed = logits.clone()
    Processing(Request(tuple(ids), 5, seed=0, processors=[processor])).process(changed)
    return changed


def sequence(seed: int, kinds: int) -> tuple[list[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, kinds, (70,), generator=generator).tolist()
    return ids, torch.randn(VOCAB, generator=generator)


@pytest.mark.parametrize("last_n", [1, 5, 64])
@pytest.mark.parametrize("penalty", [1.5, 0.8])
def test_repetition_penalty_is_llama_cpps(last_n: int, penalty: float) -> None:
    for seed in range(5):
        ids, logits = sequence(seed, kinds=20)
        theirs = of_llama_cpp(llama.llama_sampler_init_penalties(VOCAB, last_n, penalty, 0.0, 0.0), ids, logits)
        mine = ours(f"repetition-penalty(penalty={penalty}, last_n={last_n})", ids, logits)
        torch.testing.assert_close(mine, theirs)
        assert not mine.equal(logits)


@pytest.mark.parametrize("last_n", [5, 64])
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_dry_is_llama_cpps(last_n: int, allowed: int) -> None:
    changed = 0
    for seed in range(12):
        ids, logits = sequence(seed, kinds=2)
        theirs = of_llama_cpp(llama.llama_sampler_init_dry(None, 0.8, 1.75, allowed, last_n, None, 0), ids, logits)
        spec = f'dry(multiplier=0.8, base=1.75, allowed_length={allowed}, last_n={last_n}, sequence_breakers="29")'
        torch.testing.assert_close(ours(spec, ids, logits), theirs)
        changed += not theirs.equal(logits)
    assert changed > 1
