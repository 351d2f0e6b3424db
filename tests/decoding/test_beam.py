"""Beam search: held against transformers' own, what processors and equal candidates do, and the command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner, Result

from neurogen.cli import main
from neurogen.contract.processor import History, Processor
from neurogen.decoding.beam import BeamEngine, BeamSearch, Hypothesis
from neurogen.decoding.beam_settings import BeamSettings
from neurogen.decoding.engine import Engine, Request
from neurogen.decoding.processing import Processing
from neurogen.errors import InvalidLogitsError, ParameterError
from neurogen.models.language_model import load_model
from neurogen.registry.registry import load_processors, load_sampler
from neurogen.text.runner import Failure, Prompt, Runner, RunOptions
from neurogen.text.runner import Result as Sequel

if TYPE_CHECKING:
    from neurogen.models.language_model import LanguageModel

PROMPTS = ["Once upon a time", "Lily and Tom went to the park.", "The"]
Found = list[tuple[list[int], float]]


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    """The model that comes with neurogen, in float32."""
    return load_model("starter", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def lively(tiny_model_dir: Path) -> LanguageModel:
    """The random model with its last layer scaled: its distributions are not flat, and sequences do end."""
    model = load_model(str(tiny_model_dir), device="cpu", dtype="float32")
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(40)
    return model


def theirs(
    model: LanguageModel, ids: Sequence[int], new: int, stops: set[int], n: int, beams: int, **options: Any
) -> Found:
    """What transformers finds: new tokens, end-of-sequence included, and score of each sequence."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=new, do_sample=False, num_beams=beams, num_return_sequences=n, pad_token_id=-1,
        eos_token_id=sorted(stops) or None, return_dict_in_generate=True, output_scores=True,
        renormalize_logits=True, **options,
    )  # fmt: skip
    given = torch.tensor([list(ids)])
    output: Any = model.model.generate(given, attention_mask=torch.ones_like(given), generation_config=config)
    rows = [[token for token in row[len(ids) :] if token >= 0] for row in output.sequences.tolist()]
    return list(zip(rows, output.sequences_scores.tolist(), strict=True))


def assert_same(ours: Sequence[Hypothesis], others: Found) -> None:
    assert [list(one.token_ids) for one in ours] == [tokens for tokens, _ in others]
    assert [one.score for one in ours] == pytest.approx([score for _, score in others], rel=1e-5, abs=1e-5)


SETTINGS = [
    (2, 12, 1.0, False), (3, 20, 0.0, False), (4, 16, 2.0, True), (5, 9, 1.0, True), (4, 24, -1.0, False),
    (3, 1, 1.0, False), (5, 24, 0.6, False),
]  # fmt: skip


@pytest.mark.parametrize(("beams", "new", "penalty", "early"), SETTINGS)
def test_starter_gives_the_sequences_and_scores_of_transformers(
    starter: LanguageModel, beams: int, new: int, penalty: float, early: bool
) -> None:
    for prompt in PROMPTS:
        ids = starter.tokenizer.encode(prompt)
        ours = BeamSearch(starter, beams, penalty, early).search(ids, new, starter.eos_ids, n=beams)
        assert_same(
            ours,
            theirs(starter, ids, new, set(starter.eos_ids), beams, beams, length_penalty=penalty, early_stopping=early),
        )


STOPS = [(), (2,), range(2, 302, 25), range(2, 302, 6)]
"""With the last, the random model ends most texts before they are long."""

RANDOM_PROMPTS = [[1, 5, 9], [1], [1, 270, 33, 4, 280, 17, 90]]


@pytest.mark.parametrize(("beams", "new", "penalty", "early"), SETTINGS)
@pytest.mark.parametrize("stops", STOPS, ids=["none", "one", "few", "many"])
def test_random_model_gives_the_sequences_and_scores_of_transformers(
    lively: LanguageModel, beams: int, new: int, penalty: float, early: bool, stops: Sequence[int]
) -> None:
    options = {"length_penalty": penalty, "early_stopping": early}
    for prompt in RANDOM_PROMPTS:
        ours = BeamSearch(lively, beams, **options).search(prompt, new, stops, n=beams)
        assert_same(ours, theirs(lively, prompt, new, set(stops), beams, beams, **options))


def test_texts_that_end_are_among_those_compared_and_every_setting_counts(lively: LanguageModel) -> None:
    def found(penalty: float, early: bool) -> list[Hypothesis]:
        return [
            one
            for prompt in RANDOM_PROMPTS
            for one in BeamSearch(lively, 5, penalty, early).search(prompt, 24, STOPS[-1], n=5)
        ]

    usual = found(0.6, False)
    assert {one.finish_reason for one in usual} == {"eos"}
    assert all((one.token_ids[-1] - 2) % 6 == 0 for one in usual)
    assert len({len(one.token_ids) for one in usual}) > 3
    assert found(0.6, True) != usual
    assert [one.token_ids for one in found(-1.0, False)] != [one.token_ids for one in usual]


def test_best_come_first_and_fewer_are_their_beginning(starter: LanguageModel) -> None:
    ids = starter.tokenizer.encode(PROMPTS[0])
    search = BeamSearch(starter, 4)
    found = search.search(ids, 10, starter.eos_ids, n=4)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert search.search(ids, 10, starter.eos_ids, n=2) == found[:2]
    assert search.search(ids, 10, starter.eos_ids) == found[:1]


@pytest.mark.parametrize("spec", ["", "repetition-penalty(penalty=1.3)+no-repeat-ngram(size=2)"])
@pytest.mark.parametrize("penalty", [-1.0, 1.0])
def test_one_beam_is_greedy(starter: LanguageModel, lively: LanguageModel, spec: str, penalty: float) -> None:
    processors = load_processors(spec) if spec else []
    cases = [(starter, starter.tokenizer.encode(PROMPTS[1]), starter.eos_ids), (lively, [1, 5], frozenset({2, 77, 52}))]
    for model, ids, stops in cases:
        for processor in processors:
            processor.prepare(model.tokenizer, model.tokenizer.vocab_size)
        request = Request(tuple(ids), 20, seed=0, stop_ids=stops, processors=processors)
        greedy = [step.token_id for step in Engine(model, load_sampler("greedy")).generate([request])]
        (only,) = BeamSearch(model, 1, penalty).search(ids, 20, stops, processors=processors)
        assert list(only.token_ids) == greedy


def test_bans_are_respected_as_by_transformers(starter: LanguageModel) -> None:
    ids = starter.tokenizer.encode(PROMPTS[0])
    free = BeamSearch(starter, 3).search(ids, 14, starter.eos_ids, n=3)
    banned = sorted({free[0].token_ids[0], free[1].token_ids[4]})
    processors = load_processors(f'no-repeat-ngram(size=2)+banned-tokens(tokens="{banned[0]},{banned[-1]}")')
    for processor in processors:
        processor.prepare(starter.tokenizer, starter.tokenizer.vocab_size)
    ours = BeamSearch(starter, 3).search(ids, 14, starter.eos_ids, n=3, processors=processors)
    assert not any(set(one.token_ids) & set(banned) for one in ours)
    options: dict[str, Any] = {"suppress_tokens": banned, "no_repeat_ngram_size": 2}
    assert_same(ours, theirs(starter, ids, 14, set(starter.eos_ids), 3, 3, **options))


def test_search_as_wide_as_the_tree_finds_every_sequence_with_processors(lively: LanguageModel) -> None:
    few = [3, 40, 111]
    processors = load_processors(f'repetition-penalty(penalty=1.5)+allowed-tokens(tokens="{few[0]},{few[1]},{few[2]}")')
    for processor in processors:
        processor.prepare(lively.tokenizer, lively.vocab_size)
    expected = {}
    for tokens in itertools.product(few, repeat=3):
        request = Request((1, 40), 3, seed=0, processors=processors)
        processing, total = Processing(request), 0.0
        for place, token in enumerate(tokens):
            ids = torch.tensor([[1, 40, *tokens[:place]]])
            logits = lively.forward(ids, torch.ones_like(ids))[0][0].float().clone()
            processing.process(logits)
            total += float(logits.double().log_softmax(0)[token])
            processing.accept(token)
        expected[tokens] = total / 3**0.5
    found = BeamSearch(lively, 27, 0.5).search([1, 40], 3, (), n=27, processors=processors)
    assert len(found) == 27
    assert {one.token_ids: one.score for one in found} == pytest.approx(expected, rel=1e-5)


class Remembering(Processor):
    """Bans what its memory holds, and fails where that is not what the sequence has."""

    name = "remembering"
    api_version = 1

    def start(self, history: History) -> list[int]:
        return []

    def process(self, logits: torch.Tensor, history: History, memory: list[int]) -> None:
        assert memory == history.ids[history.prompt_tokens :]
        logits[memory] = float("-inf")

    def accept(self, token_id: int, history: History, memory: list[int]) -> None:
        memory.append(token_id)


def test_every_beam_has_processors_with_a_memory_of_its_own(starter: LanguageModel) -> None:
    ids = starter.tokenizer.encode("The")
    found = BeamSearch(starter, 4).search(ids, 12, starter.eos_ids, n=4, processors=[Remembering()])
    assert all(len(set(one.token_ids)) == len(one.token_ids) for one in found)


class Script(Processor):
    """Allows at each place only the tokens that are written for it, and refuses to go beyond."""

    name = "script"
    api_version = 1

    def __init__(self, *allowed: Sequence[int], refuse: bool = False) -> None:
        super().__init__()
        self.allowed, self.refuse = allowed, refuse

    def process(self, logits: torch.Tensor, history: History, memory: None) -> None:
        if self.refuse and history.new_tokens == len(self.allowed):
            raise ParameterError("script: it is over.")
        kept = list(self.allowed[history.new_tokens]) if history.new_tokens < len(self.allowed) else []
        values = logits[kept].clone()
        logits.fill_(float("-inf"))
        logits[kept] = values


def test_fewer_sequences_than_asked_for_where_processors_leave_no_more(lively: LanguageModel) -> None:
    found = BeamSearch(lively, 4).search([1], 8, {2}, n=4, processors=[Script([5, 6], [2])])
    assert sorted(one.token_ids for one in found) == [(5, 2), (6, 2)]


def test_what_leaves_nothing_is_named(lively: LanguageModel) -> None:
    search = BeamSearch(lively, 3)
    with pytest.raises(InvalidLogitsError, match=r"No beam can go on after 1 new token.*processors script together"):
        search.search([1], 8, {2}, processors=[Script([5, 6])])
    with pytest.raises(ParameterError, match="it is over"):
        search.search([1], 8, {2}, processors=[Script([5, 6], refuse=True)])


def test_logits_without_a_distribution_are_the_models_fault(tiny: LanguageModel) -> None:
    forward = tiny.forward

    def broken(*given: Any, **named: Any) -> Any:
        logits, cache = forward(*given, **named)
        return logits.fill_(float("nan")), cache

    tiny.forward = broken  # type: ignore[method-assign]
    with pytest.raises(InvalidLogitsError, match="model's logits have no valid distribution after 0 new token"):
        BeamSearch(tiny).search([1], 4, ())


def test_of_equal_candidates_the_better_beam_comes_first_then_the_lower_id(tiny_model_dir: Path) -> None:
    flat = load_model(str(tiny_model_dir), device="cpu", dtype="float32")
    with torch.no_grad():
        flat.model.get_output_embeddings().weight.zero_()
    found = BeamSearch(flat, 3).search([1], 2, (), n=3)
    assert [one.token_ids for one in found] == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": 0}, "beams must be an integer from 1 to 4096, got 0"),
        ({"beams": True}, "beams must be an integer"),
        ({"length_penalty": float("nan")}, "length_penalty must be a number from -10 to 10, got nan"),
        ({"length_penalty": 11}, "length_penalty must be a number from -10 to 10, got 11"),
        ({"early_stopping": "never"}, "early_stopping must be True or False, got 'never'"),
    ],
)
def test_settings_outside_their_domain_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BeamSettings(**values)


def test_requests_are_checked_as_by_the_engine(tiny: LanguageModel) -> None:
    search = BeamSearch(tiny, 2)
    with pytest.raises(ParameterError, match="The prompt has no token"):
        search.search([], 4, ())
    with pytest.raises(ParameterError, match=r"the context of .* holds 64"):
        search.search([1] * 60, 5, ())
    with pytest.raises(ParameterError, match="n must be an integer from 1 to 2, the number of beams, got 3"):
        search.search([1], 5, (), n=3)
    assert len(search.search([1] * 60, 4, ())[0].token_ids) == 4


def runner_of(model: LanguageModel, n: int, beams: int, **options: Any) -> Runner:
    sampler = load_sampler("greedy")
    engine = BeamEngine(BeamSearch(model, beams), sampler)
    return Runner(model, sampler, RunOptions(n=n, **options), engine=engine)


def test_samples_of_a_prompt_are_the_best_sequences_of_one_search(
    starter: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = BeamSearch(starter, 3).search(starter.tokenizer.encode(PROMPTS[0]), 8, starter.eos_ids, n=3)
    searches: list[Any] = []
    original = BeamSearch.search
    monkeypatch.setattr(BeamSearch, "search", lambda *given: searches.append(given) or original(*given))
    results = runner_of(starter, 3, 3, max_new_tokens=8).generate(PROMPTS[0], PROMPTS[1])
    assert len(searches) == 2
    assert [tuple(result.token_ids) for result in results[:3]] == [one.token_ids for one in expected]
    assert [result.score for result in results[:3]] == [one.score for one in expected]


def test_stop_string_cuts_a_text_off_and_the_others_follow(starter: LanguageModel) -> None:
    whole = runner_of(starter, 2, 2, max_new_tokens=12).generate(PROMPTS[0])
    stop = whole[0].text[4:7]
    cut = runner_of(starter, 2, 2, max_new_tokens=12, stop=(stop,)).generate(PROMPTS[0])
    assert cut[0].finish_reason == "stop"
    assert cut[0].text == whole[0].text.split(stop)[0]
    assert cut[1].text == whole[1].text.split(stop)[0]


def test_what_is_wrong_with_a_prompt_is_told_once_and_the_next_is_run(starter: LanguageModel) -> None:
    runner = runner_of(starter, 3, 3, max_new_tokens=3, processors=[Script([5, 6], [9], [10])])
    events = list(runner.run(iter([Prompt(0, "A"), Prompt(1, "B")])))
    assert [type(event) for event in events if isinstance(event, Sequel | Failure)] == [Sequel, Sequel, Failure] * 2
    (failure, _) = (event for event in events if isinstance(event, Failure))
    assert "found only 2 sequence(s) for this prompt, and sample 3 was asked for" in str(failure.error)


def test_engine_refuses_what_a_search_cannot_give(starter: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="leave out logprobs"):
        runner_of(starter, 1, 2, logprobs=1).generate("A")
    with pytest.raises(ParameterError, match="Sample 3 of a prompt was asked for, but there are 2 beams"):
        runner_of(starter, 3, 2).generate("A")


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["run", "--dtype", "float32", "--max-new-tokens", "9", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_command_prints_the_best_texts_in_order(starter: LanguageModel) -> None:
    ids = starter.tokenizer.encode(PROMPTS[0])
    search = BeamSearch(starter, 4, 0.5, True)
    expected = search.search(ids, 9, starter.eos_ids, n=3)
    shape = ("--beams", "4", "--length-penalty", "0.5", "--early-stopping", "-n", "3", "--prompt", PROMPTS[0])
    objects = [json.loads(line) for line in command(*shape, "--json").stdout.splitlines()]
    assert [tuple(one["token_ids"]) for one in objects] == [one.token_ids for one in expected]
    assert [one["score"] for one in objects] == pytest.approx([one.score for one in expected])
    assert command(*shape).stdout == "\n".join(one["text"] + "\n" for one in objects)


def test_command_goes_on_with_a_file_of_results_of_the_same_search(tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('"The cat"\n{"prompt": "A dog", "processors": "no-repeat-ngram(size=2)"}\n')
    shape = ("--beams", "3", "-n", "2", "--prompts", str(prompts), "--output", str(output))
    assert command(*shape).exit_code == 0
    whole = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(one["index"], one["sample"]) for one in whole] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert whole[0]["run"]["beam"] == {"beams": 3, "length_penalty": 1.0, "early_stopping": False}
    assert whole[2]["processors"] == ["no-repeat-ngram(size=2)"]
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:1]))
    assert command(*shape).exit_code == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(one["token_ids"], one["score"]) for one in again] == [(one["token_ids"], one["score"]) for one in whole]
    other = command(*shape, "--length-penalty", "2")
    assert other.exit_code == 1
    assert "its length penalty is 1.0 and this run's is 2.0" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beams", "2", "-s", "topk"), "--beams draws nothing: give --sampler greedy or none, got 'topk'."),
        (("--beams", "2", "--record", "x"), "--record does not go with --beams."),
        (("--beams", "2", "--stream"), "--stream does not go with --beams."),
        (("--beams", "2", "--logprobs", "0", "--json"), "--logprobs does not go with --beams."),
        (("--beams", "2", "--engine", "llamacpp"), "--engine llamacpp does not go with --beams: only torch's can."),
        (("--beams", "2", "--best-of", "2"), "Give either --beams or --best-of"),
        (("--beams", "2", "--batch-size", "2"), "--batch-size does not go with --beams"),
        (("--beams", "2", "-n", "3"), "-n must be at most --beams, which is 2, got 3."),
        (("--beams", "0"), "it must be an integer >= 1, got '0'."),
        (("--beams", "2", "--length-penalty", "nan"), "length_penalty must be a number from -10 to 10, got nan."),
        (("-s", "greedy", "--length-penalty", "2"), "--length-penalty says how a beam search works: add --beams N."),
        (("-s", "greedy", "--early-stopping"), "--early-stopping says how a beam search works: add --beams N."),
        ((), "Which sampler?"),
    ],
)
def test_command_refuses_what_does_not_go_together(options: Sequence[str], message: str) -> None:
    result = command("--prompt", "A", *options)
    assert result.exit_code == 2
    assert message in result.stderr
