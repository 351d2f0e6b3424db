"""Samplers and their peers with pytest-benchmark, which keeps a history of them:

    pytest benchmarks/ --benchmark-only                          the default grid, every sampler that is installed
    pytest benchmarks/ --benchmark-only --sampler minp           one of them; repeat for several
    pytest benchmarks/ --benchmark-only --grid full              every kind, dtype, vocab and batch
    pytest benchmarks/ --benchmark-only -k "topk and b8"         some of it
    pytest benchmarks/ --benchmark-only --benchmark-autosave     keep it
    pytest benchmarks/ --benchmark-only --benchmark-compare --neurogen-compare-fail 1.5

A group is one cell: the sampler (`neurogen`), one read of the logits (`floor`) and the peers, with its parameters.
For the times they run one after the other. The ratios that are kept and compared are those of turns, as in `neurogen
bench`, which a noisy machine hardly moves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen.bench.cells import Cell
from neurogen.bench.logits import make_logits
from neurogen.bench.measure import draw_of, measure
from neurogen.bench.peers import Draw, peers_for
from neurogen.bench.rule import rule_of
from neurogen.models.language_model import resolve_device
from neurogen.testing.benchmark import ratios_held

RATIO_PEERS = ("floor", "torch")
OWN = "neurogen"


def contenders(name: str, cell: Cell, device: torch.device) -> list[str]:
    """The sampler, and the peers that there are for this cell; nobody where the sampler takes no such logits."""
    sampler = neurogen.load_sampler(name)
    if cell.dtype not in sampler.dtypes:
        return []
    rule = rule_of(sampler)
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
    measured = neurogen.load_sampler(sampler)
    draw = (
        draw_of(measured, logits)
        if contender == OWN
        else peers_for(rule_of(measured), cell.batch, device)[contender][0]
    )
    call = waited_for(draw, logits)
    call()  # compiles
    benchmark.group = f"{sampler} {cell}"
    benchmark.extra_info.update(sampler=repr(measured), contender=contender, device=str(device))
    if contender == OWN:
        again = partial(measure, measured, cell, device=device, peers=RATIO_PEERS)
        ratios_held(request.config, benchmark, again)
    ids = benchmark(call)
    assert len(ids) == cell.batch
    assert ((ids >= 0) & (ids < cell.vocab)).all()
    if contender == OWN and not measured.stateful:
        assert measured.support(logits).gather(-1, ids[:, None]).all()
