"""What neurogen-vllm makes of requests and rows, without vLLM: `test_vllm.py` has the real one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neurogen

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "integrations/neurogen-vllm"))

from neurogen_vllm.request import check_request, sampler_request  # noqa: E402
from neurogen_vllm.rows import Choosing, Parked, Row  # noqa: E402


def asked(vllm_seed: int | None = None, /, *, n: int = 1, end: int | None = None, **extra: Any) -> SimpleNamespace:
    """Sampling parameters as vLLM has them."""
    args = {f"neurogen_{name}": value for name, value in extra.items()} or None
    return SimpleNamespace(extra_args=args, seed=vllm_seed, n=n, stop_token_ids=[], _eos_token_id=end, ignore_eos=False)


def row_of(position: int, **extra: Any) -> Row:
    row = Row.of(asked(**extra))
    assert row is not None
    row.prompt_length = position
    return row


def chosen(logits: torch.Tensor) -> list[int]:
    """The only token left in each row."""
    assert torch.isfinite(logits).sum(dim=1).tolist() == [1] * len(logits)
    return logits.argmax(dim=1).tolist()


def test_requests_without_our_arguments_are_none_of_ours() -> None:
    assert sampler_request(asked()) is None
    assert sampler_request(SimpleNamespace(extra_args={"other": 1}, seed=1)) is None
    assert Row.of(asked()) is None


@pytest.mark.parametrize(
    "extra",
    [
        {"sampler": "topk", "params": {"k": 7}},
        {"sampler": "topk(k=7)"},
        {"sampler": "topk", "params": '{"k": 7}'},
    ],
)
def test_parameters_are_given_in_three_ways(extra: dict[str, Any]) -> None:
    request = sampler_request(asked(**extra))
    assert request is not None
    assert repr(request.sampler) == "topk(k=7, temperature=0.8)"


def test_the_seed_is_ours_then_vllms_then_zero() -> None:
    seeds = [asked(5, sampler="topk", seed=7), asked(5, sampler="topk"), asked(sampler="topk")]
    assert [sampler_request(one).seed for one in seeds] == [7, 5, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (asked(sampler="topkk"), "There is no sampler 'topkk'"),
        (asked(sampler=5), r'neurogen_sampler must be a name such as "topk\(k=50\)", got 5'),
        (asked(sampler="topk", params={"k": -1}), "k must be an integer >= 0, got -1"),
        (asked(sampler="topk", params={"k": [1]}), r"k must be one number or text, got \[1\]"),
        (asked(sampler="topk", params="k=1"), "must be a mapping of parameters, or such a JSON object"),
        (asked(sampler="topk", seed="7"), "neurogen_seed must be an integer of 64 bits, got '7'"),
        (asked(sampler="topk", seed=True), "neurogen_seed must be an integer"),
        (asked(sampler="topk", sede=1), "no argument 'neurogen_sede'; there are neurogen_sampler"),
        (asked(params={}), "neurogen_params is given without neurogen_sampler"),
        (asked(n=2, sampler="topk"), "n is 2: give vLLM's own seed"),
        (asked(n=2, sampler="topk", seed=4), "not neurogen_seed"),
    ],
)
def test_wrong_requests_are_refused(request_: Any, words: str) -> None:
    with pytest.raises(neurogen.NeurogenError, match=words):
        check_request(request_)


def test_penalties_after_the_choice_are_refused() -> None:
    request = asked(sampler="topk")
    request.repetition_penalty = 1.1
    with pytest.raises(neurogen.ParameterError, match=r"repetition_penalty is 1.1 .* Set repetition_penalty to 1"):
        check_request(request)


def test_several_samples_with_vllms_seed_are_accepted() -> None:
    check_request(asked(3, n=4, sampler="topk"))


def test_rows_of_several_samplers_each_get_their_own_choice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 64) * 3
    before = logits.clone()
    rows = [
        (0, row_of(9, sampler="topk(k=5, temperature=2.0)", seed=1)),
        (1, row_of(3, sampler="topk(k=50)", seed=2)),
        (3, row_of(5, sampler="topp(p=0.7)", seed=2**40)),
        (4, row_of(7, sampler="greedy")),
        (5, row_of(1, sampler="topk(k=0, temperature=1.0)+topp(p=0.5)", seed=-4)),
    ]
    result = Choosing()(logits, rows, None, frozenset())
    assert torch.equal(result[2], before[2])
    expected = [
        neurogen.load_sampler(spec).sample(before[i : i + 1], seed=seed, position=position).item()
        for i, spec, seed, position in [
            (0, "topk(k=5, temperature=2.0)", 1, 9),
            (1, "topk(k=50)", 2, 3),
            (3, "topp(p=0.7)", 2**40, 5),
            (4, "greedy", 0, 7),
            (5, "topk(k=0, temperature=1.0)+topp(p=0.5)", -4, 1),
        ]
    ]
    assert chosen(result[[0, 1, 3, 4, 5]]) == expected


def test_positions_may_be_given() -> None:
    logits = torch.randn(2, 64)
    rows = [(0, row_of(0, sampler="topk", seed=1)), (1, row_of(0, sampler="topk", seed=1))]
    expected = neurogen.load_sampler("topk").sample(logits, seed=1, position=torch.tensor([8, 30])).tolist()
    assert chosen(Choosing()(logits, rows, torch.tensor([8, 30]), frozenset())) == expected


def test_memory_follows_a_row_and_forgets_what_is_dropped() -> None:
    torch.manual_seed(1)
    steps = [torch.randn(2, 64) * 2 for _ in range(6)]
    specs = ["mirostat(tau=2.0)", "mirostat(tau=4.0)"]
    expected: list[list[int]] = []
    for index, spec in enumerate(specs):
        own = neurogen.load_sampler(spec)
        state = own.new_state(1)
        expected.append(
            [own.sample(step[index][None], seed=6, position=p, state=state).item() for p, step in enumerate(steps)]
        )
    rows = [row_of(0, sampler=spec, seed=6) for spec in specs]
    choosing, parked = Choosing(), Parked()
    for position, step in enumerate(steps):
        for row in rows:
            row.prompt_length = position
        choosing(torch.randn(2, 64), [(0, rows[0])], None, frozenset())  # asked for twice: only the last counts
        choosing(torch.randn(2, 64), [(1, rows[1])], None, frozenset({1}))
        order = [1, 0] if position % 2 else [0, 1]  # moved within the batch
        left = choosing(step[order].clone(), [(i, rows[which]) for i, which in enumerate(order)], None, frozenset())
        assert [chosen(left)[order.index(which)] for which in (0, 1)] == [one[position] for one in expected]
        parked.put(rows[0])  # preempted, and back
        rows[0] = parked.row_of(rows[0].params)  # type: ignore[assignment]


def test_a_row_without_a_valid_distribution_ends_alone() -> None:
    logits = torch.randn(3, 16)
    logits[1] = float("nan")
    logits[2] = float("nan")
    rows = [(i, row_of(4, sampler="topk", seed=1)) for i in range(3)]
    rows[1][1].fallback = 7
    before = logits.clone()
    result = Choosing()(logits, rows, None, frozenset())
    assert chosen(result[:1]) == neurogen.load_sampler("topk").sample(before[:1], seed=1, position=4).tolist()
    assert chosen(result[1:2]) == [7]
    assert result[2].isnan().all()  # no token ends it: vLLM's matter


def test_the_end_of_a_sequence_is_taken_from_the_request() -> None:
    assert Row.of(asked(end=3, sampler="topk")).fallback == 3  # type: ignore[union-attr]
    ignoring = asked(end=3, sampler="topk")
    ignoring.ignore_eos = True
    assert Row.of(ignoring).fallback == -1  # type: ignore[union-attr]
    ignoring.stop_token_ids = [9]
    assert Row.of(ignoring).fallback == 9  # type: ignore[union-attr]


def test_a_sampler_that_cannot_be_loaded_in_the_worker_ends_the_row() -> None:
    row = Row.of(asked(end=5, sampler="gone"))
    assert row is not None
    assert chosen(Choosing()(torch.randn(1, 16), [(0, row)], None, frozenset())) == [5]


def test_requests_of_the_documentation_are_accepted() -> None:
    text = (ROOT / "docs/integrations.md").read_text(encoding="utf-8")
    body = json.loads(re.search(r"-d '\n(\{.*?\})'", text, re.DOTALL)[1])  # type: ignore[index]
    check_request(SimpleNamespace(extra_args=body["vllm_xargs"], seed=None, n=1))
