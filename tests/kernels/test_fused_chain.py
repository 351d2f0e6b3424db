"""The chain `topk+topp` as one sampler with a kernel of its own: the same as its two links, bit for bit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import neurogen
from neurogen import reference
from neurogen.contract.chain import chain_class
from neurogen.registry.registry import default_registry

PACKAGE = Path(__file__).parents[2] / "plugins" / "topk_topp"
MARGIN = 1e-6  # of the mass: masses have 24 bits
KS, PS = [0, 1, 5, 50, 400, 10_000], [0.01, 0.5, 0.9, 1.0]


@pytest.fixture(scope="module")
def fused() -> Iterator[neurogen.Sampler]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE)
        yield importlib.import_module("neurogen_topk_topp").TopKTopP()


@pytest.fixture(scope="module")
def chain() -> neurogen.Sampler:
    registry = default_registry()
    return chain_class([registry.load_class("topk"), registry.load_class("topp")])()


def hard_rows(vocab: int) -> torch.Tensor:
    """Rows that differ in what a cut meets: ties, -inf, flat, saturated, no distribution, signed zeros."""
    x = torch.randn(12, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    x[1] = x[1].round()
    x[2] = 0.0
    x[3, ::3] = -torch.inf
    x[4] = -40.0
    x[4, vocab // 2] = 12.0
    x[5] *= 1e-3
    x[6, vocab // 2] = torch.nan
    x[7] = -torch.inf
    x[8] = torch.where(x[8] > 0, 0.0, -0.0)
    x[9, 1:] = -torch.inf
    return x


def per_row(batch: int) -> dict[str, torch.Tensor]:
    """Every pair of k and p, over the rows of a batch."""
    pairs = [(k, p) for k in KS for p in PS]
    chosen = [pairs[row % len(pairs)] for row in range(batch)]
    k, p = (torch.tensor(values) for values in zip(*chosen, strict=True))
    return {"k": k, "p": p.double(), "temperature": torch.linspace(0.2, 3.0, batch).double()}


@pytest.mark.parametrize(
    "dtype",  # each is compiled, which takes long
    [torch.float32, *(pytest.param(half, marks=pytest.mark.slow) for half in (torch.float16, torch.bfloat16))],
    ids=str,
)
@pytest.mark.parametrize("vocab", [1, 7, 130, 3000])
def test_the_fused_kernel_is_the_chain_bit_for_bit(
    fused: neurogen.Sampler, chain: neurogen.Sampler, vocab: int, dtype: torch.dtype
) -> None:
    logits = hard_rows(vocab).repeat(len(KS) * len(PS), 1).to(dtype)
    logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))]
    rows = per_row(len(logits))
    numbers = {"seed": torch.arange(len(logits)) * 7919, "position": 12}
    ids = fused.sample(logits, check=False, **numbers, **rows)
    assert ids.equal(chain.sample(logits, check=False, **numbers, **rows))
    assert fused.probs(logits, check=False, **rows).equal(chain.probs(logits, check=False, **rows))
    assert fused.support(logits, check=False, **rows).equal(chain.support(logits, check=False, **rows))
    assert (ids >= 0).any()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("k", KS)
def test_the_support_is_that_of_the_definition(fused: neurogen.Sampler, k: int, p: float, temperature: float) -> None:
    own = importlib.import_module(fused.reference)
    logits = hard_rows(500)[:6]
    compared = 0
    for row, kept in zip(logits.numpy(), fused.support(logits, k=k, p=p, temperature=temperature), strict=True):
        left = np.where(reference.topk_support(row, k), row, -np.inf)
        if temperature == 0 or p == 1 or reference.nucleus_margin(left, p, temperature) > MARGIN:
            assert kept.tolist() == own.support(row, k, p, temperature).tolist()
            compared += 1
    assert compared >= 3


def test_the_nucleus_is_of_the_mass_of_the_k_largest(fused: neurogen.Sampler) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])  # masses 20, 7.4, 2.7, 1: the first is 0.64 of all, 0.73 of two
    assert fused.support(logits, k=2, p=0.7, temperature=1.0).tolist() == [[True, False, False, False]]
    assert fused.support(logits, k=4, p=0.7, temperature=1.0).tolist() == [[True, True, False, False]]


def test_its_parameters_and_options_are_those_of_the_chain(fused: neurogen.Sampler, chain: neurogen.Sampler) -> None:
    assert fused.name == chain.name
    assert fused.params.model_dump() == chain.params.model_dump()
    own, other = (type(sampler.params).model_fields for sampler in (fused, chain))
    for name, field in own.items():
        assert field.json_schema_extra == other[name].json_schema_extra
        assert field.metadata == other[name].metadata
    with pytest.raises(neurogen.ParameterError):
        type(fused)(p=0.0)
