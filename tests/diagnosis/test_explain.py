"""`neurogen explain`: what it says of a token is what the engine did."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import neurogen
from neurogen import reference
from neurogen.cli.explain import report
from neurogen.cli.program import main
from neurogen.diagnosis.explain import Explanation, explain
from neurogen.errors import ParameterError
from neurogen.kernels.numerics import random_bits, uniform
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.pages.explain import fragment, page
from neurogen.text.generation import Prompt
from neurogen.text.runner import Runner

TEXT = "Once upon a time"
SLIDERS = Path(neurogen.__file__).parent / "pages" / "templates" / "explain_sliders.js"


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", dtype="float32")


def page_data(explanation: Explanation) -> dict[str, Any]:
    """What the page gives to its script."""
    data: dict[str, Any] = json.loads(re.findall(r'class="data">(.*?)</script>', page(explanation))[0])
    return data


@pytest.fixture(scope="module")
def chain(starter: LanguageModel) -> Explanation:
    sampler = neurogen.load_sampler("topk(k=20)+topp(p=0.9)", temperature=1.3)
    return explain(starter, sampler, TEXT, seed=5, max_new_tokens=24, top=30)


def test_the_tokens_are_those_of_a_run(starter: LanguageModel, chain: Explanation) -> None:
    sampler = neurogen.load_sampler("topk(k=20)+topp(p=0.9)", temperature=1.3)
    run = Runner(starter, sampler, seed=5, max_new_tokens=24).generate(TEXT)[0]
    assert [step.token_id for step in chain.steps][: len(run.token_ids)] == run.token_ids
    assert chain.result.text == run.text


def logits_of(model: LanguageModel, ids: list[int]) -> np.ndarray[Any, Any]:
    row = torch.tensor([ids])
    logits, _ = model.forward(row, torch.ones_like(row))
    return logits[0, : model.tokenizer.vocab_size].float().numpy()


def test_numbers_are_those_of_the_reference(starter: LanguageModel, chain: Explanation) -> None:
    ids = list(starter.tokenizer.encode(TEXT))
    for step in chain.steps:
        logits = logits_of(starter, ids)
        model = reference.weights(logits, 1.0)
        model /= model.sum()
        assert step.position == len(ids)
        assert step.probability == pytest.approx(model[step.token_id], abs=1e-5)
        assert step.rank == int((reference.order(logits) == step.token_id).nonzero()[0][0]) + 1
        assert step.entropy == pytest.approx(-(model[model > 0] * np.log(model[model > 0])).sum(), abs=1e-3)
        of_topk = reference.topk_support(logits, 20)
        left = np.where(of_topk, logits, -np.inf)
        of_both = reference.topp_support(left, 0.9, 1.3)
        assert [stage.kept for stage in step.stages] == [len(logits), 20, int(of_both.sum())]
        for one in step.candidates:
            cut = None if of_both[one.token_id] else "topp(p=0.9)" if of_topk[one.token_id] else "topk(k=20)"
            assert one.removed_by == cut
            assert (one.drawn > 0) == (cut is None)
        ids.append(step.token_id)


def test_the_random_number_lies_in_the_interval_of_the_token(chain: Explanation) -> None:
    decided = [step for step in chain.steps if step.random is not None]
    assert len(decided) > 5
    for step in decided:
        assert step.interval is not None
        low, high = step.interval
        assert low - 1e-6 <= step.random <= high + 1e-6
        assert high - low == pytest.approx(step.drawn, abs=1e-6)


def test_no_random_number_decides_for_greedy(starter: LanguageModel) -> None:
    steps = explain(starter, neurogen.load_sampler("greedy"), TEXT, max_new_tokens=4).steps
    assert {step.random for step in steps} == {None}
    assert {step.drawn for step in steps} == {1.0}


class Ban(neurogen.Processor):
    """Bans one token."""

    name = "ban"
    api_version = 1

    class Params(neurogen.SamplerParams):
        token: int = neurogen.Param(0, description="Its id.")

    def process(self, logits: torch.Tensor, history: neurogen.History, memory: Any) -> None:
        logits[self.params.token] = -torch.inf


def test_a_processor_is_a_stage_and_is_named_for_what_it_removes(starter: LanguageModel) -> None:
    best = explain(starter, neurogen.load_sampler("greedy"), TEXT, max_new_tokens=1).steps[0].token_id
    explanation = explain(
        starter, neurogen.load_sampler("greedy"), TEXT, max_new_tokens=1, processors=[Ban(token=best)], top=3
    )
    step = explanation.steps[0]
    assert step.token_id != best
    assert step.stages[0].kind == "processor"
    assert step.stages[0].mass < 1
    assert {one.token_id: one.removed_by for one in step.candidates}[best] == f"ban(token={best})"


def test_several_samples_are_refused(starter: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="n must be 1, got 2"):
        explain(starter, neurogen.load_sampler("greedy"), TEXT, n=2)
    with pytest.raises(ParameterError, match="top must be an integer >= 1, got 0"):
        explain(starter, neurogen.load_sampler("greedy"), TEXT, top=0)


def test_json_is_whole(chain: Explanation) -> None:
    values = json.loads(json.dumps(chain.to_json(), allow_nan=False))
    assert len(values["steps"]) == len(chain.steps)
    assert values["steps"][0]["stages"][1]["name"] == "topk(k=20)"


def test_the_page_holds_every_token_and_nothing_from_elsewhere(chain: Explanation) -> None:
    text = page(chain)
    assert text.count("data-step=") == len(chain.steps)
    assert "http" not in text
    assert "src=" not in text
    assert fragment(chain).startswith("<style>")


def test_what_a_model_writes_cannot_leave_its_place(chain: Explanation) -> None:
    from dataclasses import replace

    nasty = "</script><script>alert(1)</script>"
    step = replace(chain.steps[0], text=nasty)
    text = page(replace(chain, steps=[step], model=nasty, token_text=lambda token: nasty))
    assert "<script>alert" not in text


def test_the_tail_of_a_page_holds_all_other_tokens(chain: Explanation, starter: LanguageModel) -> None:
    step = page_data(chain)["steps"][0]
    assert len(step["logits"]) + sum(count for count, _ in step["tail"]) == starter.tokenizer.vocab_size
    logits = logits_of(starter, list(starter.tokenizer.encode(TEXT)))
    top = logits.max()
    told = sum(math.exp(value - top) for _, _, value in step["logits"])
    told += sum(n * math.exp(v - top) for n, v in step["tail"])
    assert told == pytest.approx(np.exp(logits - top).sum(), rel=1e-3)


MIRRORED = [
    ("topk", {"k": 20, "temperature": 0.7}),
    ("topp", {"p": 0.95, "temperature": 1.755}),
    ("topp", {"p": 0.9999, "temperature": 2.0}),
    ("temperature", {"temperature": 1.3}),
    ("topk(k=300)+topp(p=0.98)", {"temperature": 1.9}),
    ("topp(p=0.98)+topk(k=300)", {"temperature": 1.9}),
    ("greedy", {}),
    ("topp", {"p": 0.9, "temperature": 0.0}),
]
"""Samplers whose settings the sliders have."""


def by_node(explanation: Explanation, settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What the page's own script finds for every step, at the settings that the page starts with or at others."""
    if shutil.which("node") is None:
        pytest.skip("node, which runs the page's script, is not installed")
    data = page_data(explanation)
    script = SLIDERS.read_text(encoding="utf-8")
    program = (
        f"{script}\nconst data = {json.dumps(data)};\nconst settings = {json.dumps(settings or data['start'])};\n"
        "console.log(JSON.stringify(data.steps.map((step) => keptOf(step, settings, data.order))));"
    )
    shown = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60, check=True).stdout
    found: list[dict[str, Any]] = json.loads(shown)
    return found


@pytest.mark.parametrize(("spec", "params"), MIRRORED)
def test_at_the_settings_of_the_run_the_sliders_keep_what_the_table_says(
    starter: LanguageModel, spec: str, params: dict[str, Any]
) -> None:
    explanation = explain(starter, neurogen.load_sampler(spec, **params), TEXT, seed=3, max_new_tokens=12, top=2000)
    of_page = page_data(explanation)["steps"]
    for step, shown, now in zip(explanation.steps, of_page, by_node(explanation), strict=True):
        assert now["count"] == step.stages[-1].kept
        drawn = {one.token_id: one.drawn for one in step.candidates}
        for (token, _, _), probability in zip(shown["logits"], now["probabilities"], strict=False):
            assert probability == pytest.approx(drawn[token], rel=1e-4, abs=1e-7)
        assert now["probabilities"][shown["place"]] == pytest.approx(step.drawn, rel=1e-4)


def test_at_other_settings_the_sliders_keep_what_the_sampler_would(starter: LanguageModel) -> None:
    explanation = explain(starter, neurogen.load_sampler("topk", k=5), TEXT, seed=3, max_new_tokens=8)
    other = neurogen.load_sampler("topk(k=900)+topp(p=0.97)", temperature=2.5)
    ids = list(starter.tokenizer.encode(TEXT))
    found = by_node(explanation, {"temperature": 2.5, "k": 900, "p": 0.97})
    for step, now in zip(explanation.steps, found, strict=True):
        kept = int(other.support(torch.tensor(logits_of(starter, ids))[None]).sum())
        assert now["count"] == pytest.approx(kept, abs=1)  # the logits of a batch and of one row may round differently
        ids.append(step.token_id)


def test_a_page_that_cannot_hold_all_logits_says_so(chain: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.pages.explain.MOST_BYTES", 100)
    data = page_data(chain)
    assert {step["values"] for step in data["steps"]} == {None}
    assert [step["kept"] for step in data["steps"]] == [step.stages[-1].kept for step in chain.steps]
    assert "nearly right, not exact" in page(chain)


def test_sliders_do_not_claim_to_know_other_samplers(starter: LanguageModel) -> None:
    explanation = explain(starter, neurogen.load_sampler("minp"), TEXT, seed=3, max_new_tokens=2)
    data = page_data(explanation)
    assert (data["own"], data["sampler"]) == (None, "minp")


TOLD = [
    "greedy", "temperature(temperature=1.3)", "topk(k=7)", "topp(p=0.8)", "minp", "typical", "epsilon", "eta",
    "topnsigma", "dynatemp", "xtc(probability=1.0)", "xtc(probability=0.0)", "mirostat(eta=0.5)", "topk(k=50)+mirostat",
    "topk+topp", "topk(k=30)+typical", "transformers(top_k=30, top_p=0.9, min_p=0.02, temperature=1.4)",
    "vllm(top_k=30, top_p=0.9, min_p=0.02, temperature=0.004)", "llamacpp", "llamacpp(temperature=0.0)",
    "topp(temperature=0.0)",
]  # fmt: skip


@pytest.mark.parametrize("spec", TOLD)
def test_what_is_told_is_what_the_sampler_itself_says(starter: LanguageModel, spec: str) -> None:
    """Kept tokens and probabilities are those of `support` and `probs`, with the memory that the sampler had."""
    sampler = neurogen.load_sampler(spec)
    explanation = explain(starter, sampler, TEXT, seed=11, max_new_tokens=12, top=50)
    ids = list(starter.tokenizer.encode(TEXT))
    given: dict[str, Any] = {"state": sampler.new_state(1)} if sampler.stateful else {}
    kept = []
    for step in explanation.steps:
        logits = torch.tensor(logits_of(starter, ids))[None]
        probs = sampler.probs(logits, **given)[0]
        kept.append(step.stages[-1].kept)
        assert kept[-1] == pytest.approx(int(sampler.support(logits, **given).sum()), abs=1)
        assert step.drawn == pytest.approx(float(probs[step.token_id]), rel=1e-3)
        assert step.drawn > 0
        for one in step.candidates:
            assert one.drawn == pytest.approx(float(probs[one.token_id]), rel=1e-3, abs=1e-6)
            assert (one.removed_by is None) or one.drawn == 0
        sampler.sample(logits, seed=11, position=step.position, **given)
        ids.append(step.token_id)
    if "mirostat" in spec:
        assert len(set(kept)) > 2


def names(explanation: Explanation, step: int = 0) -> list[str]:
    return [stage.name.partition("=")[0].partition(" ")[0] for stage in explanation.steps[step].stages]


def test_the_stages_of_a_profile_stand_in_the_order_of_the_program(starter: LanguageModel) -> None:
    order = {
        "llamacpp": ["top_k", "typical_p", "top_p", "min_p", "temperature"],
        "transformers": ["temperature", "top_k", "top_p", "min_p", "typical_p"],
        "vllm": ["temperature", "min_p", "top_k", "top_p"],
    }
    for name, expected in order.items():
        given = {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "temperature": 0.7}
        params = {one: value for one, value in given.items() if one in expected}
        explanation = explain(starter, neurogen.load_sampler(name, **params), TEXT, seed=2, max_new_tokens=6)
        assert names(explanation) == expected
        for step in explanation.steps:
            counts = [stage.kept for stage in step.stages if stage.kind == "truncation"]
            assert counts == sorted(counts, reverse=True)
            assert step.random is not None or step.drawn > 0.999
    off = explain(starter, neurogen.load_sampler("llamacpp", min_p=0.0, temperature=1.0), TEXT, max_new_tokens=1)
    assert names(off) == ["top_k", "top_p"]


def test_of_xtc_the_outcome_of_its_chance_is_told(starter: LanguageModel) -> None:
    sampler = neurogen.load_sampler("xtc", threshold=0.05, probability=0.5)
    explanation = explain(starter, sampler, TEXT, seed=4, max_new_tokens=30, top=30)
    outcomes = set()
    for step in explanation.steps:
        removes = float(uniform(random_bits(4, step.position, 1))) < 0.5
        outcomes.add(removes)
        assert ("came true" in step.stages[-1].name) == removes
        assert removes or step.stages[-1].kept == explanation.vocab_size
        assert removes or not any(one.removed_by for one in step.candidates)
        assert step.interval is not None or step.drawn > 0.999
    assert outcomes == {True, False}


class Fading(neurogen.Sampler):
    """Draws the best token, then the second best, and so on; its `probs` knows no memory."""

    name = "fading"
    api_version = 1
    stateful = True

    def new_state(self, batch: int) -> neurogen.State:
        return {"count": torch.zeros(batch, dtype=torch.int64)}

    def _sample(self, logits: Any, seed: Any, position: Any, params: Any, *state: neurogen.State) -> torch.Tensor:
        state[0]["count"] += 1
        return logits.argsort(descending=True, stable=True).gather(1, state[0]["count"][:, None] - 1)[:, 0]

    def _probs(self, logits: Any, params: Any) -> torch.Tensor:
        return torch.softmax(logits, -1)

    def _support(self, logits: Any, params: Any) -> torch.Tensor:
        return logits > -torch.inf


def test_nothing_is_told_of_a_memory_that_a_sampler_does_not_tell_of(starter: LanguageModel) -> None:
    explanation = explain(starter, Fading(), TEXT, max_new_tokens=3)
    assert [step.rank for step in explanation.steps] == [1, 2, 3]
    assert {step.drawn for step in explanation.steps} == {None}
    assert [step.stages for step in explanation.steps] == [[], [], []]
    report(explanation)
    json.dumps(explanation.to_json())
    assert "does not tell what it kept" in page(explanation)


def test_a_prompts_own_parameters_are_those_told(starter: LanguageModel) -> None:
    prompt = Prompt(0, TEXT, params={"k": 3, "temperature": 0.5})
    explanation = explain(starter, neurogen.load_sampler("topk", k=50), prompt, seed=1, max_new_tokens=4)
    assert [stage.name for stage in explanation.steps[0].stages] == ["temperature 0.5", "topk(k=3)"]
    data = page_data(explanation)
    assert data["own"] == {"temperature": 0.5, "k": 3, "p": 1.0}
    mirostat = neurogen.load_sampler("mirostat", eta=1.0)
    own = explain(starter, mirostat, Prompt(0, TEXT, params={"tau": 1.0}), seed=1, max_new_tokens=8)
    plain = explain(starter, neurogen.load_sampler("mirostat", eta=1.0, tau=1.0), TEXT, seed=1, max_new_tokens=8)
    assert [(step.token_id, step.drawn) for step in own.steps] == [(step.token_id, step.drawn) for step in plain.steps]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.slow
def test_sliders_of_the_page_keep_what_the_sampler_kept(chain: Explanation, tmp_path: Path) -> None:
    """In a browser, at the sampler's own settings, the script finds the probabilities that it drew with."""
    check = """<script>
      const rows = [...document.querySelectorAll('.detail .card:last-child tr')].slice(1)
        .map((row) => [...row.children].map((cell) => cell.textContent));
      document.title = JSON.stringify(rows.filter((row) => row[4] !== '' && row[4] !== row[5]));
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(page(chain).replace("</body>", check), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>[]</title>" in shown


def test_the_command_explains_in_the_terminal_as_json_and_as_a_page(tmp_path: Path) -> None:
    base = ["explain", "--sampler", "topk", "--top-k", "5", "--prompt", TEXT, "--max-new-tokens", "3", "--seed", "1"]
    shown = CliRunner().invoke(main, base)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("for the model, rank") == 3
    assert "topk(k=5): 5 tokens left" in shown.stdout
    assert len(json.loads(CliRunner().invoke(main, [*base, "--json"]).stdout)["steps"]) == 3
    target = tmp_path / "why.html"
    assert CliRunner().invoke(main, [*base, "--html", str(target)]).exit_code == 0
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    refused = CliRunner().invoke(main, [*base, "--html", str(tmp_path / "absent" / "why.html")])
    assert refused.exit_code == 1
    assert "there is no folder" in refused.stderr
