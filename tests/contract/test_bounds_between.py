"""Bounds between parameters: what is right by itself and wrong together is refused wherever values are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cli_helpers import neurogen_command

import neurogen
from neurogen import Param, ParameterError, SamplerParams
from neurogen.contract.parameters import build_params, has_bounds_between, nearest_parameter
from neurogen.models.language_model import LanguageModel
from neurogen.text.runner import Failure, Prompt, Result, Runner, RunOptions

CROSSED = r"min_temperature must be at most max_temperature, got 2 and 1"
LOGITS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])


def test_a_sampler_with_crossed_bounds_is_not_made() -> None:
    with pytest.raises(ParameterError, match=f"^dynatemp: {CROSSED}") as caught:
        neurogen.load_sampler("dynatemp", min_temperature=2.0, max_temperature=1)
    assert caught.value.parameter == "min_temperature"
    with pytest.raises(ParameterError, match=CROSSED):
        neurogen.load_sampler("topk+dynatemp(min_temperature=2, max_temperature=1)")
    neurogen.load_sampler("dynatemp", min_temperature=2.0, max_temperature=2.0)


def test_values_of_a_call_are_checked_together_row_by_row() -> None:
    wide = neurogen.load_sampler("dynatemp", min_temperature=0.5, max_temperature=3.0)
    assert wide.sample(LOGITS, min_temperature=2.0).shape == (2,)  # beyond the default of the other, not beyond its own
    with pytest.raises(ParameterError, match=r"got 4 and 3"):
        wide.sample(LOGITS, min_temperature=4.0)
    per_row = torch.tensor([0.5, 2.0])
    assert wide.sample(LOGITS, min_temperature=per_row, max_temperature=torch.tensor([0.5, 2.5])).shape == (2,)
    with pytest.raises(ParameterError, match=r"got 2 and 1 in row 1\."):
        wide.sample(LOGITS, min_temperature=per_row, max_temperature=torch.tensor([0.5, 1.0]))
    with pytest.raises(ParameterError, match=r"got 2 and 1 in row 1\."):
        wide.probs(LOGITS, min_temperature=per_row, max_temperature=1.0)
    with pytest.raises(ParameterError, match=r"got 2 and 1 in row 1\."):
        neurogen.load_sampler("topk+dynatemp").sample(LOGITS, min_temperature=per_row, max_temperature=1.0)


@pytest.mark.parametrize("spec", ["dynatemp", "topk+dynatemp"])
def test_a_prompts_own_values_are_checked_with_the_runs(tiny: LanguageModel, spec: str) -> None:
    runner = Runner(tiny, neurogen.load_sampler(spec), max_new_tokens=2)
    prompts = [Prompt(0, "the", params={"min_temperature": 2.0}), Prompt(1, "the", params={"max_temperature": 9.0})]
    events = list(runner.run(iter(prompts)))
    (failure,) = (event for event in events if isinstance(event, Failure))
    assert failure.index == 0
    assert "min_temperature must be at most max_temperature, got 2 and 1.5" in str(failure.error)
    assert [event.index for event in events if isinstance(event, Result)] == [1]


def test_pydantics_own_validators_count_too() -> None:
    from pydantic import model_validator

    class Own(SamplerParams):
        low: int = Param(1, description="")
        high: int = Param(2, description="")

        @model_validator(mode="after")
        def in_order(self) -> Own:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    assert has_bounds_between(Own)
    assert not has_bounds_between(SamplerParams)
    with pytest.raises(ParameterError, match="low is above high"):
        build_params("own", Own, {"low": 3})


def test_a_sequence_cannot_be_asked_for_more_tokens_than_it_may_get(tiny: LanguageModel) -> None:
    processors = neurogen.load_processors("min-new-tokens(tokens=50)")
    told = r"min-new-tokens\(tokens=50\) wants at least 50 new tokens, and a sequence may get at most 5"
    with pytest.raises(ParameterError, match=told):
        RunOptions(max_new_tokens=5, processors=processors)
    greedy = neurogen.load_sampler("greedy")
    with pytest.raises(ParameterError, match=told):
        list(Runner(tiny, greedy, processors=processors).run([Prompt(0, "the", max_new_tokens=5)]))
    (result,) = Runner(tiny, greedy, processors=processors).generate("the")  # the default makes room
    assert len(result.token_ids) >= 50
    with pytest.raises(ParameterError, match="wants at least 50 new tokens"):
        Runner(tiny, greedy, processors=processors).generate("red ball " * 8)


def test_the_command_refuses_them_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.models.language_model.load_model", lambda *_, **__: pytest.fail("loaded"))
    outcome = neurogen_command("run", "-s", "topk", "--prompt", "a", "--min-new-tokens", "50", "--max-new-tokens", "5")
    assert outcome.exit_code != 0
    assert "wants at least 50 new tokens" in outcome.stderr
    assert outcome.stdout == ""


NAMES: list[tuple[str, str, Any]] = [
    ("typical", "p", "typical_p"),
    ("topk", "top_k", "k"),
    ("topp", "top_p", "p"),
    ("minp", "p", "min_p"),
    ("dynatemp", "temperature", "min_temperature"),
    ("dynatemp", "max_temp", "max_temperature"),
    ("mirostat", "mirostat_tau", "tau"),
    ("topk", "temprature", "temperature"),
    ("topk", "p", None),
    ("topk", "zzz", None),
]


@pytest.mark.parametrize(("sampler", "name", "near"), NAMES)
def test_an_unknown_parameter_is_answered_by_the_nearest(sampler: str, name: str, near: str | None) -> None:
    schema = type(neurogen.load_sampler(sampler).params)
    assert nearest_parameter(schema, name) == near
    with pytest.raises(ParameterError) as caught:
        neurogen.load_sampler(f"{sampler}({name}=1)")
    assert f"it has: {', '.join(schema.model_fields)}." in str(caught.value)
    assert str(caught.value).endswith(f"Did you mean {near!r}?" if near else ".")
