"""Benchmarks: cells and their logits, peers, and what is measured. No test looks at absolute speed."""

from __future__ import annotations

import itertools
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import MinP, Reverse
from cli_helpers import offer

import neurogen
from neurogen import ParameterError, Registry
from neurogen.bench.cells import Cell, grid
from neurogen.bench.clock import LEAST_TURNS, take_turns
from neurogen.bench.logits import make_logits, widened
from neurogen.bench.machine import busy_cores, cpu_name, this_machine
from neurogen.bench.measure import draw_of, measure
from neurogen.bench.peers import peers_for, torch_peer, transformers_peer
from neurogen.bench.results import Quartiles
from neurogen.bench.rule import Rule, rule_of

pytestmark = pytest.mark.usefixtures("registry")

CPU = torch.device("cpu")
SECONDS = 0.01


# Cells and their logits


def test_a_grid_holds_every_combination_once() -> None:
    cells = grid(["flat", "flat"], ["float32"], [10, 20], [1, 2])
    assert [str(cell) for cell in cells] == [
        "flat float32 vocab=10 batch=1",
        "flat float32 vocab=10 batch=2",
        "flat float32 vocab=20 batch=1",
        "flat float32 vocab=20 batch=2",
    ]


def test_a_cell_that_no_machine_could_hold_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"A vocab of 262,144 at batch 2,048 makes 536,870,912 logits; a cell may"):
        grid(["flat"], ["float32"], [262_144], [2048])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["normal", "real", "flat", "equal"])
def test_logits_have_the_shape_and_dtype_of_their_cell_and_never_vary(kind: Any, dtype: Any) -> None:
    cell = Cell(kind=kind, dtype=dtype, vocab=300, batch=3)
    logits, source = make_logits(cell, CPU)
    assert logits.shape == (3, 300)
    assert str(logits.dtype) == f"torch.{dtype}"
    assert logits.isfinite().all()
    assert logits.equal(make_logits(cell, CPU)[0])
    assert source


def test_kinds_are_as_flat_as_they_say() -> None:
    top = {}
    for kind in ("normal", "real", "flat", "equal"):
        logits, _ = make_logits(Cell(kind=kind, vocab=2000, batch=8), CPU)  # type: ignore[arg-type]
        top[kind] = torch.softmax(logits, -1).amax(-1).median().item()
    assert top["equal"] == pytest.approx(1 / 2000)
    assert top["equal"] < top["flat"] < 0.001 < top["normal"] < top["real"]


def test_real_logits_say_which_model_they_are_of_and_what_was_cut() -> None:
    _, source = make_logits(Cell(kind="real", vocab=300), CPU)
    assert source == "next-token logits of starter over a text, the first 300 of 2,048 ids"


def test_real_logits_of_a_large_vocabulary_come_without_the_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.bench.logits.find_gguf", lambda known: None)
    monkeypatch.setattr("neurogen.bench.logits._real", neurogen.bench.logits._real.__wrapped__)  # without its cache
    logits, source = make_logits(Cell(kind="real", vocab=9000, batch=2), CPU)
    assert logits.shape == (2, 9000)
    assert source == "next-token logits of starter over a text, widened from 2,048 to 9,000 ids by improbable tokens"


def test_widening_keeps_the_head_and_most_of_the_mass() -> None:
    rows, _ = make_logits(Cell(kind="real", vocab=2048, batch=16), CPU)
    wide = widened(rows, 50_000)
    assert wide[:, :2048].equal(rows)
    assert wide.topk(50).indices.equal(rows.topk(50).indices)
    kept = torch.softmax(wide, -1)[:, :2048].sum(-1)
    assert kept.min() > 0.5


# Peers


@pytest.mark.parametrize(
    ("name", "params", "rule"),
    [
        ("greedy", {}, Rule(0.0)),
        ("topk", {"k": 7}, Rule(0.8, k=7)),
        ("topp", {"p": 0.3, "temperature": 1.5}, Rule(1.5, p=0.3)),
        ("minp", {"min_p": 0.2}, Rule(1.0, min_p=0.2)),
        ("reverse", {}, Rule(1.0, exact=False)),
    ],
)
def test_peers_are_told_what_the_sampler_does(
    registry: Registry, name: str, params: dict[str, Any], rule: Rule
) -> None:
    offer(registry, MinP, Reverse)
    assert rule_of(registry.load_sampler(name, **params)) == rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("greedy", {}),
        ("topk", {"k": 5}),
        ("topk", {"k": 0}),
        ("topk", {"k": 5, "temperature": 0.0}),
        ("topp", {"p": 0.7}),
        ("topp", {"p": 1.0}),
        ("topp", {"p": 0.7, "temperature": 1.0}),
        ("minp", {"min_p": 0.3}),
    ],
)
def test_every_peer_draws_tokens_of_the_samplers_support_only(
    registry: Registry, name: str, params: dict[str, Any], dtype: torch.dtype
) -> None:
    """Steps of 1/8: exact in every dtype, without ties, and no sum of masses comes near 0.7 or a share near 0.3."""
    offer(registry, MinP)
    sampler = registry.load_sampler(name, **params)
    row = torch.arange(24) / 8
    logits = torch.stack(
        [row[torch.randperm(24, generator=torch.Generator().manual_seed(seed))] for seed in range(300)]
    )
    logits = logits.to(dtype)
    support = sampler.support(logits)
    peers = peers_for(rule_of(sampler), 1, CPU)
    peers.pop("floor")
    assert "torch" in peers
    for peer, (draw, note) in peers.items():
        assert not note
        ids = torch.cat([draw(rows) for rows in logits.split(1)]) if peer == "llama.cpp" else draw(logits)
        assert ids.shape == (300,)
        assert support.gather(-1, ids[:, None]).all(), peer
        drawn = {int((logits[i] > logits[i, token]).sum()) for i, token in enumerate(ids)}  # ranks
        assert max(drawn) < support[0].sum()
        assert len(drawn) > min(3, int(support[0].sum()) - 1), peer


def test_transformers_has_no_peer_where_it_would_be_plain_torch() -> None:
    assert transformers_peer(Rule(0.0)) is None
    assert transformers_peer(Rule(1.0, exact=False)) is None
    assert torch_peer(Rule(0.0))(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [1]


def test_unknown_peers_are_refused() -> None:
    with pytest.raises(ParameterError, match="There is no peer 'jax'; there are: floor, torch, transformers"):
        peers_for(Rule(1.0), 1, CPU, ["jax"])


# Measuring


def test_contenders_take_turns_and_slow_ones_at_least_three() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        sum(range(300_000))

    turns = take_turns({"quick": lambda: calls.append("quick"), "slow": slow}, CPU, 0.02)
    assert len(turns["slow"].times) >= LEAST_TURNS
    assert len(turns["quick"].times) >= len(turns["slow"].times)
    assert turns["quick"].calls > turns["slow"].calls
    assert set(turns["slow"].times) <= set(turns["quick"].times)
    measured = calls[calls.index("slow") :]
    changes = sum(one != other for one, other in itertools.pairwise(measured))
    assert changes >= 2 * LEAST_TURNS - 1
    assert statistics.median(turns["quick"].times.values()) < statistics.median(turns["slow"].times.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["greedy", "topk", "topp"])
def test_a_measurement_has_times_and_ratios_of_every_peer(name: str, dtype: Any) -> None:
    sampler = neurogen.load_sampler(name)
    result = measure(sampler, Cell(vocab=700, batch=2, dtype=dtype), seconds=SECONDS)
    assert {"floor", "torch"} <= set(result.peers) == set(result.to_peers)
    assert ("transformers" in result.peers) == (name != "greedy")
    for ratio in result.to_peers.values():
        assert 0 < ratio.q1 <= ratio.median <= ratio.q3
    assert result.ratio_to_floor == result.ratio_to("floor") > 0
    assert result.times_faster_than("torch") == pytest.approx(1 / result.ratio_to("torch"))
    assert result.own.turns >= LEAST_TURNS
    assert result.label == repr(sampler).removesuffix("()")
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_an_unknown_sampler_is_measured_beside_plain_drawing(registry: Registry) -> None:
    offer(registry, Reverse)
    result = measure(registry.load_sampler("reverse"), Cell(vocab=200), seconds=SECONDS)
    assert set(result.peers) == {"floor", "torch"}
    assert result.peer_notes["torch"] == "temperature only: softmax and multinomial"


def test_a_cell_beyond_the_memory_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("neurogen.bench.measure.make_logits", full)
    with pytest.raises(neurogen.errors.DeviceError, match="does not fit into the memory of cpu"):
        measure(neurogen.load_sampler("topk"), Cell())


def test_a_sampler_with_memory_gets_one() -> None:
    class Counting(Reverse):
        name = "counting"
        stateful = True

        def new_state(self, batch: int) -> dict[str, torch.Tensor]:
            return {"calls": torch.zeros(batch)}

        def _sample(self, logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            if rest:
                rest[-1]["calls"] += 1
            return super()._sample(logits)

    logits = torch.zeros(3, 5)
    assert draw_of(Counting(), logits)(logits).tolist() == [4, 4, 4]


def test_quartiles_are_those_of_the_values() -> None:
    assert Quartiles.of([4.0]) == Quartiles(median=4, q1=4, q3=4)
    assert Quartiles.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Quartiles(median=3, q1=2, q3=4)


def test_the_processor_is_named_with_what_tells_it_apart(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\ncpu family : 25\nmodel\t\t: 17\nmodel name : AMD EPYC\n\nprocessor : 1\n")
    assert cpu_name(info) == "AMD EPYC (family 25, model 17)"
    assert cpu_name(tmp_path / "absent")


def test_other_programs_are_noticed(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    assert busy_cores(stat=stat) is None
    stat.write_text("cpu 100 0 0 100 0 0 0 0 0 0\n")
    assert busy_cores(0, stat) is None
    assert (busy_cores(0.01) or 0) >= 0
    cores = os.cpu_count() or 1
    assert this_machine(cores, busy=1.0).disturbed
    assert not this_machine(cores, busy=0.1).disturbed
    assert not this_machine(cores, busy=None).disturbed
