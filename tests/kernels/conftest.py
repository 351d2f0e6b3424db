"""Samplers and compilers that the tests of kernels share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from kernel_helpers import KeepAll

import neurogen
from neurogen import Param, Sampler, SamplerParams
from neurogen.kernels import cpu


class MinP(Sampler):
    """Min-p, whose kernels the toolkit makes from one function for each device."""

    name = "minp"
    api_version = 1
    backends = {"cpu": "minp.cpu"}

    class Params(SamplerParams):
        share: float = Param(0.1, ge=0, le=1, description="Of the most probable token's probability.")
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")


def keep_heavier(row: cpu.Row, share: float) -> Any:
    return cpu.heavier(row, share)


@pytest.fixture(scope="module")
def samplers() -> Iterator[dict[str, neurogen.Sampler]]:
    loaded: dict[str, neurogen.Sampler] = {name: neurogen.load_sampler(name) for name in ("greedy", "topk", "topp")}
    module = ModuleType("minp.cpu")
    module.sample, module.probs, module.support = cpu.truncation(keep_heavier, "share")  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "minp.cpu", module)
        yield loaded | {"temperature": KeepAll(), "minp": MinP()}


@pytest.fixture
def compiler() -> None:
    pytest.importorskip("numba.cuda.cudadrv.nvvm", reason="numba-cuda with NVVM is needed to compile (extra cuda)")
