"""Samplers beside plain torch and one pass over the same memory: `pytest benchmarks/ --benchmark-only`.

Read ratios within one run, not times: machines differ.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen

VOCAB = 128_256
BATCHES = (1, 8)
SAMPLERS: dict[str, dict[str, Any]] = {"greedy": {}, "topk": {"k": 50}, "topp": {"p": 0.9}}


def torch_floor(logits: Tensor) -> Tensor:
    """One vectorised pass over the logits."""
    return torch.amax(logits, -1)


def torch_greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def torch_topk(logits: Tensor) -> Tensor:
    values, ids = torch.topk(logits, 50)
    return ids.gather(-1, torch.multinomial(torch.softmax(values / 0.8, -1), 1)).squeeze(-1)


def torch_topp(logits: Tensor) -> Tensor:
    values, ids = logits.sort(descending=True)
    probs = torch.softmax(values / 0.8, -1)
    probs[probs.cumsum(-1) - probs >= 0.9] = 0
    return ids.gather(-1, torch.multinomial(probs, 1)).squeeze(-1)


@pytest.fixture(params=BATCHES, ids=lambda batch: f"batch={batch}")
def logits(request: pytest.FixtureRequest) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(request.param, VOCAB, generator=generator) * 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_neurogen(name: str, logits: Tensor, benchmark: Any) -> None:
    benchmark.group = f"{name} vocab={VOCAB} batch={len(logits)}"
    sampler = neurogen.load_sampler(name, **SAMPLERS[name])
    sampler.sample(logits)  # compiles
    ids = benchmark(sampler.sample, logits, seed=1, position=2)
    assert sampler.support(logits).gather(-1, ids[:, None]).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("peer", ["torch", "floor"])
def test_peer(name: str, peer: str, logits: Tensor, benchmark: Any) -> None:
    benchmark.group = f"{name} vocab={VOCAB} batch={len(logits)}"
    function = torch_floor if peer == "floor" else globals()[f"torch_{name}"]
    assert len(benchmark(function, logits)) == len(logits)
