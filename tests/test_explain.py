"""`neurogen explain`: what it says of a token is what the engine did."""

from __future__ import annotations

import json
import math
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
from neurogen.cli.program import main
from neurogen.errors import ParameterError
from neurogen.explain import Explanation, explain
from neurogen.explain_page import fragment, page
from neurogen.models import LanguageModel, load_model
from neurogen.runner import Runner

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", dtype="float32")


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
    step = replace(chain.steps[0], text=nasty, logits=[(1, nasty, 0.0)])
    text = page(replace(chain, steps=[step], model=nasty))
    assert "<script>alert" not in text


def test_the_tail_of_a_page_holds_all_other_tokens(chain: Explanation, starter: LanguageModel) -> None:
    step = chain.steps[0]
    assert len(step.logits) + sum(count for count, _ in step.tail) == starter.tokenizer.vocab_size
    logits = logits_of(starter, list(starter.tokenizer.encode(TEXT)))
    top = logits.max()
    told = sum(math.exp(value - top) for _, _, value in step.logits) + sum(n * math.exp(v - top) for n, v in step.tail)
    assert told == pytest.approx(np.exp(logits - top).sum(), rel=1e-3)


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
