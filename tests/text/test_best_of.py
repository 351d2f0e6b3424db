"""Best-of: the candidate that the model finds most probable, with seeds of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import neurogen
from neurogen.cli.program import main
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.text.best_of import BestOf, mean_logprob
from neurogen.text.runner import Prompt, Result, Runner, RunOptions, TextDelta

TEXTS = ("Once upon a time", "The dog")


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", dtype="float32")


def best(model: LanguageModel, candidates: int, **options: Any) -> list[Result]:
    sampler = neurogen.load_sampler("topk", temperature=1.2)
    runner = BestOf(model, sampler, RunOptions(max_new_tokens=12, seed=5, **options), candidates=candidates)
    events = runner.run([Prompt(index, text) for index, text in enumerate(TEXTS)])
    return sorted((one for one in events if isinstance(one, Result)), key=lambda one: (one.index, one.sample))


def test_the_best_of_the_candidates_is_chosen(starter: LanguageModel) -> None:
    sampler = neurogen.load_sampler("topk", temperature=1.2)
    drawn = Runner(starter, sampler, n=6, seed=5, max_new_tokens=12, logprobs=0).generate(*TEXTS)
    for result in best(starter, 3, n=2):
        own = [one for one in drawn if one.index == result.index and one.sample // 3 == result.sample]
        scores = [mean_logprob(one) for one in own]
        chosen = own[scores.index(max(scores))]
        assert (result.token_ids, result.seed) == (chosen.token_ids, chosen.seed)
        assert result.score == pytest.approx(max(scores))
        assert result.logprobs is None


def test_one_candidate_is_a_plain_run(starter: LanguageModel) -> None:
    plain = Runner(starter, neurogen.load_sampler("topk", temperature=1.2), n=2, seed=5, max_new_tokens=12)
    assert [one.token_ids for one in best(starter, 1, n=2)] == [one.token_ids for one in plain.generate(*TEXTS)]


def test_more_candidates_never_score_lower(starter: LanguageModel) -> None:
    few, many = best(starter, 2), best(starter, 4)
    assert few[0].score is not None
    assert many[0].score is not None
    # The first prompt's four have its two among them, up to the model's own rounding in another batch.
    assert many[0].score >= few[0].score - 1e-4
    assert [one.logprobs is not None for one in best(starter, 2, logprobs=1)] == [True, True]


def test_the_text_comes_in_one_piece_and_done_samples_are_left_out(starter: LanguageModel) -> None:
    runner = BestOf(starter, neurogen.load_sampler("topk"), RunOptions(n=2, max_new_tokens=6, seed=1), candidates=2)
    events = list(runner.run([Prompt(0, TEXTS[0])], skip=lambda index, sample: sample == 0))
    assert [(type(one), one.sample) for one in events] == [(TextDelta, 1), (Result, 1)]


def test_candidates_are_at_least_one(starter: LanguageModel) -> None:
    with pytest.raises(neurogen.ParameterError, match="candidates must be an integer >= 1, got 0"):
        BestOf(starter, neurogen.load_sampler("greedy"), RunOptions(), candidates=0)


def run(*arguments: str) -> Any:
    base = ["run", "--sampler", "topk", "--seed", "5", "--max-new-tokens", "8", "--best-of", "3"]
    return CliRunner().invoke(main, [*base, *arguments])


def test_the_command_gives_the_best_and_its_score() -> None:
    outcome = run("--prompt", TEXTS[0], "--json")
    assert outcome.exit_code == 0, outcome.output
    (line,) = outcome.stdout.splitlines()
    assert json.loads(line)["score"] < 0
    assert "logprobs" not in json.loads(line)


def test_a_results_file_is_gone_on_with_by_the_same_number_of_candidates_only(tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    assert run("--prompts", str(prompts), "--output", str(out)).exit_code == 0
    whole = out.read_text()
    out.write_text(whole.splitlines(keepends=True)[0])
    assert run("--prompts", str(prompts), "--output", str(out)).exit_code == 0
    assert [json.loads(line)["token_ids"] for line in out.read_text().splitlines()] == [
        json.loads(line)["token_ids"] for line in whole.splitlines()
    ]
    refused = run("--prompts", str(prompts), "--output", str(out), "--best-of", "2")
    assert refused.exit_code == 1
    assert "best of" in refused.stderr


def test_whole_texts_are_not_streamed_or_recorded() -> None:
    assert "leave out --stream and --record" in run("--prompt", "a", "--stream").stderr
