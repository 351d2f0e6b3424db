"""Samplers and their peers with pytest-benchmark, which keeps a history of them:

    pytest benchmarks/ --benchmark-only                          the default grid
    pytest benchmarks/ --benchmark-only --grid full              every kind, dtype, vocab and batch
    pytest benchmarks/ --benchmark-only -k "topk and b8"         some of it
    pytest benchmarks/ --benchmark-only --benchmark-autosave     keep it; later add --benchmark-compare

A group is one cell: the sampler (`neurogen`), one read of the logits (`floor`) and the peers, with its parameters.
Here they run one after the other. For ratios that a noisy machine cannot move, take `neurogen bench`: there they take
turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen.bench.cells import Cell
from neurogen.bench.logits import make_logits
from neurogen.bench.measure import draw_of
from neurogen.bench.peers import Draw, peers_for
from neurogen.bench.rule import rule_of
from neurogen.models import resolve_device

SAMPLERS: dict[str, dict[str, Any]] = {"greedy": {}, "topk": {"k": 50}, "topp": {"p": 0.9}}
OWN = "neurogen"


def contenders(name: str, cell: Cell, device: torch.device) -> list[str]:
    """The sampler, and the peers that there are for this cell."""
    rule = rule_of(neurogen.load_sampler(name, **SAMPLERS[name]))
    return [OWN, *peers_for(rule, cell.batch, device)]


@lru_cache(maxsize=1)
def logits_of(cell: Cell, device: torch.device) -> Tensor:
    return make_logits(cell, device)[0]


def waited_for(draw: Draw, logits: Tensor) -> Callable[[], Tensor]:
    """A call that ends when the device is done."""
    if logits.device.type != "cuda":
        return lambda: draw(logits)

    def call() -> Tensor:
        ids = draw(logits)
        torch.cuda.synchronize()
        return ids

    return call


@pytest.mark.benchmark(min_rounds=3, max_time=0.3, warmup=False)
def test_speed(sampler: str, contender: str, cell: Cell, benchmark: Any, request: pytest.FixtureRequest) -> None:
    device, _ = resolve_device(request.config.getoption("--device"))
    logits = logits_of(cell, device)
    measured = neurogen.load_sampler(sampler, **SAMPLERS[sampler])
    draw = (
        draw_of(measured, logits)
        if contender == OWN
        else peers_for(rule_of(measured), cell.batch, device)[contender][0]
    )
    call = waited_for(draw, logits)
    call()  # compiles
    benchmark.group = f"{sampler} {cell}"
    benchmark.extra_info.update(sampler=repr(measured), contender=contender, device=str(device))
    ids = benchmark(call)
    assert len(ids) == cell.batch
    if contender == OWN:
        assert measured.support(logits).gather(-1, ids[:, None]).all()
