"""A sequence has one score, whoever ranks it: the token that ends a text counts, in best-of, comparisons and beams."""

from __future__ import annotations

import math

import pytest
import torch

import neurogen
from neurogen import ParameterError
from neurogen.decoding.beam import BeamSearch
from neurogen.decoding.scores import sequence_score
from neurogen.diagnosis.compare import compare
from neurogen.models.language_model import LanguageModel
from neurogen.text.best_of import BestOf, score_of
from neurogen.text.runner import Prompt, Result, Runner, RunOptions


def lively(model: LanguageModel) -> LanguageModel:
    """Let the model end its texts often, at any length, even at once."""
    inner = model.forward

    def forward(*arguments: object) -> object:
        logits, cache = inner(*arguments)  # type: ignore[arg-type]
        logits = logits.clone()
        logits[:, 2] += 5.0
        return logits, cache

    model.forward = forward  # type: ignore[method-assign, assignment]
    return model


def summed(model: LanguageModel, prompt: str, ids: list[int], ended: bool) -> tuple[float, int]:
    """The log-probability of a continuation by one forward pass over all of it, and its length."""
    chosen = [*ids, *([2] if ended else [])]
    known = model.tokenizer.encode(prompt)
    total = 0.0
    for place, token in enumerate(chosen):
        row = torch.tensor([known + chosen[:place]])
        positions = torch.arange(row.shape[1])[None]
        logits, _ = model.forward(row, torch.ones_like(row), positions, None)
        total += float(torch.log_softmax(logits[0, : model.tokenizer.vocab_size].double(), -1)[token])
    return total, len(chosen)


def test_the_token_that_ends_a_text_counts(tiny: LanguageModel) -> None:
    model = lively(tiny)
    drawn = Runner(model, neurogen.load_sampler("temperature"), n=40, seed=1, max_new_tokens=5, logprobs=0)
    results = drawn.generate("the")
    assert {one.finish_reason for one in results} == {"eos", "length"}
    assert any(not one.token_ids for one in results)
    for one in results:
        ended = one.finish_reason == "eos"
        total, length = summed(model, "the", one.token_ids, ended)
        assert one.logprobs is not None
        assert len(one.logprobs) == len(one.token_ids)
        assert (one.end_logprob is not None) == ended
        assert ("end_logprob" in one.to_json()) == ended
        assert score_of(one) == pytest.approx(total / length, abs=1e-4)
        assert score_of(one, 0.0) == pytest.approx(total, abs=1e-4)
        assert math.isfinite(score_of(one))


def test_best_of_picks_by_that_score_and_comparisons_say_the_same(tiny: LanguageModel) -> None:
    model, sampler = lively(tiny), neurogen.load_sampler("temperature")
    options = RunOptions(n=40, seed=1, max_new_tokens=5, logprobs=0)
    drawn = Runner(model, sampler, options).generate("the")
    few = RunOptions(n=10, seed=1, max_new_tokens=5)
    best = [one for one in BestOf(model, sampler, few, candidates=4).run([Prompt(0, "the")]) if isinstance(one, Result)]
    assert len(best) == 10
    for one in best:
        four = drawn[4 * one.sample : 4 * one.sample + 4]
        chosen = max(four, key=score_of)
        assert (one.seed, one.score) == (chosen.seed, pytest.approx(score_of(chosen), abs=1e-4))
        assert one.logprobs is None
        assert one.end_logprob is None
    compared = compare(model, [sampler], [Prompt(0, "the")], n=40, seed=1, max_new_tokens=5).outcomes[0].samples
    assert [one.score for one in compared] == pytest.approx([score_of(one) for one in drawn], abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_beam_search_scores_as_best_of_does(tiny: LanguageModel, penalty: float) -> None:
    search = BeamSearch(tiny, beams=6, length_penalty=penalty)
    stops = set(range(2, 40))
    found = search.search(tiny.tokenizer.encode("the"), 4, stops, n=6)
    assert any(one.finish_reason == "eos" for one in found)
    for one in found:
        total, length = summed(tiny, "the", list(one.token_ids), ended=False)
        assert one.score == pytest.approx(sequence_score(total, length, penalty), abs=1e-4)


def test_a_text_ended_by_a_string_has_no_ending_token(tiny: LanguageModel) -> None:
    whole = Runner(tiny, neurogen.load_sampler("greedy"), max_new_tokens=6).generate("the")[0].text
    stopped = Runner(tiny, neurogen.load_sampler("greedy"), max_new_tokens=6, stop=(whole[2:4],), logprobs=0)
    (cut,) = stopped.generate("the")
    assert cut.finish_reason == "stop"
    assert cut.end_logprob is None
    assert cut.logprobs is not None
    assert score_of(cut) == pytest.approx(sum(one["logprob"] for one in cut.logprobs) / len(cut.token_ids))


def test_nothing_is_scored_without_log_probabilities(tiny: LanguageModel) -> None:
    (one,) = Runner(tiny, neurogen.load_sampler("greedy"), max_new_tokens=2).generate("the")
    with pytest.raises(ParameterError, match="logprobs=0"):
        score_of(one)
    assert sequence_score(0.0, 0) == -math.inf
