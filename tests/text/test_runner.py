"""Text to text: streaming, stop strings, seeds of several samples, and what becomes of prompts that cannot be run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen import InvalidLogitsError, ParameterError
from neurogen.models.language_model import LanguageModel
from neurogen.text.runner import Event, Failure, Prompt, Result, Runner, RunOptions, TextDelta

GIRL = "Once upon a time, there was a little girl"
LILY = (
    " named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, "
    "but it was too high."
)
TEXTS = [GIRL, "Tom", "The sun was bright and the birds sang. A cat sat on the mat and", "One day, a dog"]
FIELDS = [
    "index",
    "sample",
    "prompt",
    "text",
    "token_ids",
    "sampler",
    "params",
    "seed",
    "finish_reason",
    "prompt_tokens",
    "new_tokens",
    "seconds",
    "tokens_per_second",
]


@pytest.fixture(scope="module")
def lily_tokens(stories: LanguageModel) -> int:
    """How many tokens the known continuation has."""
    return len(stories.tokenizer.encode(GIRL + LILY)) - len(stories.tokenizer.encode(GIRL))


def byte_ids(model: LanguageModel, text: str) -> list[int]:
    """The byte tokens that spell a text."""
    names = {model.tokenizer.token_text(token): token for token in range(model.vocab_size)}
    return [names[f"<0x{byte:02X}>"] for byte in text.encode()]


def choose(model: LanguageModel, script: Callable[[int, int], float | None]) -> list[int]:
    """Replace the logits: `script(last id, its position)` is the next id, NaN for a row of NaN, None for no change.

    Returns:
        rows of every call, as they are made.
    """
    rows: list[int] = []
    inner = model.forward

    def forward(input_ids: Tensor, mask: Tensor, position_ids: Tensor | None = None, cache: Any = None) -> Any:
        assert position_ids is not None
        rows.append(len(input_ids))
        logits, cache = inner(input_ids, mask, position_ids, cache)
        logits = logits.clone()
        for row, last in enumerate(torch.stack([input_ids[:, -1], position_ids[:, -1]], dim=1).tolist()):
            wanted = script(*last)
            if wanted is None:
                continue
            logits[row] = float("nan") if math.isnan(wanted) else 0.0
            if not math.isnan(wanted):
                logits[row, int(wanted)] = 50.0
        return logits, cache

    model.forward = forward  # type: ignore[method-assign]
    return rows


def say(model: LanguageModel, prompt: str, ids: Sequence[int]) -> None:
    """Let the model continue `prompt` with these ids, one after the other."""
    start = len(model.tokenizer.encode(prompt))
    choose(model, lambda token, position: ids[position + 1 - start] if position + 1 - start < len(ids) else None)


def runner(model: LanguageModel, sampler: str = "greedy", /, **values: Any) -> Runner:
    return Runner(model, neurogen.load_sampler(sampler), **values)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(index, text) for index, text in enumerate(texts)]


def results(events: Iterator[Event]) -> dict[tuple[int, int], Result]:
    """The results by (index, sample), each there once and each with the text of its deltas."""
    found: dict[tuple[int, int], Result] = {}
    texts: dict[tuple[int, int], str] = {}
    for event in events:
        if isinstance(event, Failure):
            continue
        key = (event.index, event.sample)
        assert key not in found, f"{key} goes on after its result"
        if isinstance(event, TextDelta):
            assert event.text
            texts[key] = texts.get(key, "") + event.text
        else:
            found[key] = event
    assert texts == {key: result.text for key, result in found.items() if result.text}
    return found


# Text


def test_greedy_continues_the_story_exactly(stories: LanguageModel, lily_tokens: int) -> None:
    (result,) = runner(stories, max_new_tokens=lily_tokens).generate(GIRL)
    assert result.text == LILY
    assert (result.finish_reason, result.new_tokens) == ("length", lily_tokens)


def test_greedy_continues_the_story_exactly_beside_other_prompts(stories: LanguageModel, lily_tokens: int) -> None:
    several = runner(stories, max_new_tokens=lily_tokens).generate(*TEXTS)
    assert several[0].text == LILY
    alone = [runner(stories, max_new_tokens=lily_tokens).generate(text)[0].text for text in TEXTS]
    assert [result.text for result in several] == alone


def test_a_continuation_keeps_its_leading_space_and_only_where_there_is_one(stories: LanguageModel) -> None:
    whole, split = runner(stories, max_new_tokens=30).generate(GIRL, GIRL + " named Li")
    assert whole.text.startswith(" named")
    assert not split.text.startswith(" ")


@pytest.mark.parametrize("stop", [(), ("STOP",)])
@pytest.mark.parametrize("prompt", [GIRL, "", "caf\u00e9", "end\n", "trailing ", "\U0001f388", "odd \ufffd"])
def test_prompt_and_text_joined_are_the_text_of_all_ids(
    stories: LanguageModel, prompt: str, stop: tuple[str, ...]
) -> None:
    (result,) = runner(stories, max_new_tokens=12, stop=stop).generate(prompt)
    tokenizer = stories.tokenizer
    ids = tokenizer.encode(prompt)
    assert tokenizer.decode(ids) == prompt
    assert prompt + result.text == tokenizer.decode(ids + result.token_ids)


def test_an_empty_prompt_starts_from_the_start_of_sequence(stories: LanguageModel) -> None:
    (result,) = runner(stories, max_new_tokens=8).generate("")
    assert result.prompt_tokens == 1
    assert result.text.startswith("Once upon a time")


def test_an_empty_prompt_without_a_start_of_sequence_is_refused(tiny: LanguageModel) -> None:
    tokenizer = tiny.tokenizer
    encode = tokenizer.encode

    class Bare:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def encode(self, text: str) -> list[int]:
            return encode(text, add_bos=False)

    bare = replace(tiny, tokenizer=Bare())
    with pytest.raises(ParameterError, match=r"no token.*at least one character"):
        runner(bare).generate("")


def test_characters_made_of_bytes_arrive_whole(tiny: LanguageModel) -> None:
    text = "\u00e9\U0001f388\u4e16x"
    ids = byte_ids(tiny, text)
    say(tiny, "the", ids)
    events = list(runner(tiny, max_new_tokens=len(ids)).run(prompts("the")))
    assert [event.text for event in events if isinstance(event, TextDelta)] == list(text)
    assert results(iter(events))[0, 0].text == text


def test_half_a_character_is_released_at_the_end_as_a_replacement(tiny: LanguageModel) -> None:
    ids = byte_ids(tiny, "a\U0001f388")[:-1]
    say(tiny, "the", ids)
    (result,) = results(runner(tiny, max_new_tokens=len(ids)).run(prompts("the"))).values()
    assert result.text == tiny.tokenizer.decode(tiny.tokenizer.encode("the") + ids)[len("the") :]
    assert result.text.startswith("a\ufffd")


# Endings


@pytest.mark.parametrize("eos_at", [0, 3])
def test_end_of_sequence_ends_and_belongs_neither_to_ids_nor_text(tiny: LanguageModel, eos_at: int) -> None:
    ids = byte_ids(tiny, "abc")[:eos_at]
    say(tiny, "the", [*ids, 2])
    (result,) = results(runner(tiny, max_new_tokens=9, logprobs=1).run(prompts("the"))).values()
    assert (result.finish_reason, result.text, result.token_ids) == ("eos", "abc"[:eos_at], ids)
    assert result.new_tokens == eos_at
    assert result.logprobs is not None
    assert len(result.logprobs) == eos_at


@pytest.mark.parametrize("end", ["", "x"])
def test_what_the_prompt_ends_with_is_not_given_out_again(tiny: LanguageModel, end: str) -> None:
    say(tiny, "odd \ufffd\ufffd", [*byte_ids(tiny, end), 2])
    (result,) = results(runner(tiny, max_new_tokens=9).run(prompts("odd \ufffd\ufffd"))).values()
    assert (result.text, result.finish_reason) == (end, "eos")


def test_a_stop_string_across_token_borders_ends_the_text_before_it(stories: LanguageModel) -> None:
    stop = "Lily. She"
    (result,) = results(runner(stories, max_new_tokens=40, stop=(stop,)).run(prompts(GIRL))).values()
    assert (result.text, result.finish_reason) == (" named ", "stop")
    assert all(stop not in stories.tokenizer.token_text(token) for token in result.token_ids)
    assert stop in stories.tokenizer.decode(stories.tokenizer.encode(GIRL) + result.token_ids)
    assert result.new_tokens == len(result.token_ids) < 20


def test_a_stop_string_ends_its_own_sequence_only(stories: LanguageModel, lily_tokens: int) -> None:
    stopping = [Prompt(0, GIRL, stop=("Lily",)), Prompt(1, GIRL), Prompt(2, GIRL, stop=("big, red",))]
    found = results(runner(stories, max_new_tokens=lily_tokens).run(stopping))
    assert [found[i, 0].text for i in range(3)] == [" named ", LILY, LILY[: LILY.index("big")]]
    assert [found[i, 0].finish_reason for i in range(3)] == ["stop", "length", "stop"]


def test_text_held_back_for_a_stop_string_is_released_at_the_end(stories: LanguageModel, lily_tokens: int) -> None:
    (result,) = results(
        runner(stories, max_new_tokens=lily_tokens, stop=(LILY[-9:] + "er",)).run(prompts(GIRL))
    ).values()
    assert (result.text, result.finish_reason) == (LILY, "length")


def test_text_held_back_is_released_before_end_of_sequence(tiny: LanguageModel) -> None:
    say(tiny, "the", [*byte_ids(tiny, "xST"), 2])
    (result,) = results(runner(tiny, max_new_tokens=9, stop=("STOP",)).run(prompts("the"))).values()
    assert (result.text, result.finish_reason) == ("xST", "eos")


def test_a_stop_string_completed_by_the_last_token_is_found(tiny: LanguageModel) -> None:
    say(tiny, "the", byte_ids(tiny, "xST"))
    (result,) = results(runner(tiny, max_new_tokens=3, stop=("ST",)).run(prompts("the"))).values()
    assert (result.text, result.finish_reason) == ("x", "stop")


def test_a_prompt_has_settings_of_its_own(stories: LanguageModel) -> None:
    own = Prompt(1, GIRL, params={"temperature": 0}, seed=99, max_new_tokens=4, stop=())
    found = results(runner(stories, "topk", max_new_tokens=6, stop=("!",), seed=5).run([Prompt(0, GIRL), own]))
    assert (found[0, 0].seed, found[0, 0].new_tokens) == (5, 6)
    assert (found[1, 0].seed, found[1, 0].new_tokens, found[1, 0].params["temperature"]) == (99, 4, 0)
    assert LILY.startswith(found[1, 0].text)


# Seeds and samples


def test_samples_have_seeds_that_a_run_of_one_sample_repeats(stories: LanguageModel) -> None:
    options = {"max_new_tokens": 16, "seed": 7}
    found = results(runner(stories, "topp", n=3, **options).run(prompts(*TEXTS)))
    assert {key: result.seed for key, result in found.items()} == {
        (index, sample): 7 + index * 3 + sample for index in range(4) for sample in range(3)
    }
    for (index, _), result in found.items():
        again = runner(stories, "topp", max_new_tokens=16, seed=result.seed).generate(TEXTS[index])[0]
        assert (again.text, again.token_ids) == (result.text, result.token_ids)
    assert len({found[0, sample].text for sample in range(3)}) == 3


def test_a_prompts_own_seed_is_that_of_its_first_sample(stories: LanguageModel) -> None:
    found = results(runner(stories, "topk", n=2, max_new_tokens=3).run([Prompt(4, GIRL, seed=50)]))
    assert [found[4, 0].seed, found[4, 1].seed] == [50, 51]


@pytest.mark.parametrize("sampler", ["greedy", "topk", "topp"])
def test_texts_do_not_depend_on_the_batch_size(stories: LanguageModel, sampler: str) -> None:
    texts = [
        [result.text for result in runner(stories, sampler, n=2, max_new_tokens=24, batch_size=size).generate(*TEXTS)]
        for size in (1, 3, 64)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 8


def test_results_are_in_the_order_of_prompts_and_samples(tiny: LanguageModel) -> None:
    found = runner(tiny, "topk", n=2, max_new_tokens=3, batch_size=3).generate("the", "red ball", "lily")
    assert [(result.index, result.sample) for result in found] == [(i, s) for i in range(3) for s in range(2)]
    assert [result.prompt for result in found] == ["the", "the", "red ball", "red ball", "lily", "lily"]


def test_samples_can_be_left_out_without_changing_the_others(stories: LanguageModel) -> None:
    run = runner(stories, "topk", n=2, max_new_tokens=8)
    everything = results(run.run(prompts(*TEXTS)))
    done = {(0, 0), (1, 0), (1, 1)}
    rest = results(run.run(prompts(*TEXTS), skip=lambda index, sample: (index, sample) in done))
    assert {key: result.text for key, result in rest.items()} == {
        key: result.text for key, result in everything.items() if key not in done
    }


def test_prompts_are_read_when_there_is_room(tiny: LanguageModel) -> None:
    read: list[int] = []

    def reading() -> Iterator[Prompt]:
        for index in range(8):
            read.append(index)
            yield Prompt(index, "the red")

    events = runner(tiny, max_new_tokens=4, batch_size=2).run(reading())
    first = next(events)
    assert read == [0, 1, 2]
    assert len(results(chain([first], events))) == 8


# What goes wrong


def test_a_prompt_too_long_gives_a_failure_and_the_others_go_on(tiny: LanguageModel) -> None:
    many = prompts("the", "red ball " * 60, "lily")
    events = list(runner(tiny, max_new_tokens=5).run(many))
    (failure,) = [event for event in events if isinstance(event, Failure)]
    length = len(tiny.tokenizer.encode(many[1].text))
    assert failure.index == 1
    assert isinstance(failure.error, ParameterError)
    assert all(part in str(failure.error) for part in (str(length), str(length + 5), "64", "shorten the prompt"))
    assert set(results(iter(events))) == {(0, 0), (2, 0)}


@pytest.mark.parametrize("text", ["red ball " * 60, "the"])
def test_a_single_prompt_that_cannot_be_run_raises_before_the_model_is(tiny: LanguageModel, text: str) -> None:
    calls = choose(tiny, lambda token, position: None)
    with pytest.raises(ParameterError, match="context"):
        list(runner(tiny, max_new_tokens=64).run([Prompt(0, text)]))
    assert calls == []


@pytest.mark.parametrize("params", [{"k": -1}, {"temperature": float("nan")}, {"top_k": 3}, {"k": "many"}])
def test_invalid_parameters_of_a_prompt_give_a_failure(tiny: LanguageModel, params: dict[str, Any]) -> None:
    bad = Prompt(1, "the", params=params)
    events = list(runner(tiny, "topk", max_new_tokens=2, batch_size=1).run([Prompt(0, "the"), bad, Prompt(2, "red")]))
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert failure.index == 1
    assert isinstance(failure.error, ParameterError)
    assert next(iter(params)) in str(failure.error)
    assert set(results(iter(events))) == {(0, 0), (2, 0)}


def test_when_no_prompt_can_be_run_each_gives_a_failure(tiny: LanguageModel) -> None:
    bad = [Prompt(i, "the", params={"k": -1 - i}) for i in range(3)]
    events = list(runner(tiny, "topk").run(bad))
    assert [event.index for event in events if isinstance(event, Failure)] == [0, 1, 2]
    assert len(events) == 3


def test_generate_raises_for_one_bad_prompt_of_several(tiny: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="context"):
        runner(tiny, max_new_tokens=4).generate("the", "red ball " * 60)


def test_invalid_logits_fail_their_sequence_only(tiny: LanguageModel) -> None:
    a, b = byte_ids(tiny, "ab")
    choose(tiny, lambda token, position: float("nan") if (token, position) == (a, 4) else token if token > 2 else b)
    many = [Prompt(0, "a"), Prompt(1, "b"), Prompt(2, "bb")]
    ids = {"a": (1, a), "b": (1, b), "bb": (1, b, b)}
    run = runner(tiny, max_new_tokens=6, batch_size=2)
    run.encode = lambda prompt: list(ids[prompt.text])  # type: ignore[method-assign]
    events = list(run.run(many))
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert failure.index == 0
    assert isinstance(failure.error, InvalidLogitsError)
    assert "prompt 0, sample 0" in str(failure.error)
    texts = {event.index: event.text for event in events if isinstance(event, Result)}
    assert texts == {1: "b" * 6, 2: "b" * 6}
    with pytest.raises(InvalidLogitsError, match="prompt 0, sample 0"):
        list(run.run(many[:1]))


def test_a_runner_is_usable_after_a_run_was_given_up(stories: LanguageModel) -> None:
    run = runner(stories, "topk", n=2, max_new_tokens=8)
    expected = [result.text for result in run.generate(*TEXTS)]
    events = run.run(prompts(*TEXTS))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert [result.text for result in run.generate(*TEXTS)] == expected


@pytest.mark.parametrize(
    ("values", "parameter", "message"),
    [
        ({"n": 0}, "n", "n must be an integer >= 1, got 0."),
        ({"n": True}, "n", "n must be an integer >= 1, got True."),
        ({"max_new_tokens": -1}, "max_new_tokens", "max_new_tokens must be an integer >= 1, got -1."),
        ({"max_new_tokens": 1.5}, "max_new_tokens", "max_new_tokens must be an integer >= 1, got 1.5."),
        ({"batch_size": 0}, "batch_size", "batch_size must be an integer >= 1, got 0."),
        ({"logprobs": -1}, "logprobs", "logprobs must be an integer >= 0, got -1."),
        ({"seed": 2**63}, "seed", f"seed must be an integer of 64 bits, got {2**63}."),
        ({"seed": True}, "seed", "seed must be an integer of 64 bits, got True."),
        ({"logprobs": False}, "logprobs", "logprobs must be an integer >= 0, got False."),
        ({"n": None}, "n", "n must be an integer >= 1, got None."),
        ({"seed": 1.0}, "seed", "seed must be an integer of 64 bits, got 1.0."),
        ({"stop": "end"}, "stop", "stop must be a list of texts that are not empty, got 'end'."),
        ({"stop": ("",)}, "stop", "stop must be a list of texts that are not empty, got ('',)."),
    ],
)
def test_options_outside_their_domain_are_refused(values: dict[str, Any], parameter: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        RunOptions(**values)
    assert (str(caught.value), caught.value.parameter) == (message, parameter)


def test_an_unknown_option_is_refused_with_those_there_are(tiny: LanguageModel) -> None:
    with pytest.raises(
        ParameterError, match=r"no option 'temperature'; it has: n, .*, batch_size, processors\..*where it is loaded"
    ):
        runner(tiny, temperature=3)


def test_options_and_single_values_are_not_mixed(tiny: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="not both"):
        Runner(tiny, neurogen.load_sampler("greedy"), RunOptions(), n=2)


def test_chat_without_a_template_is_refused(tiny: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="no chat template") as caught:
        runner(tiny, chat=True)
    assert caught.value.parameter == "chat"


# Results


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_a_result_as_json_has_exactly_its_fields(tiny: LanguageModel, logprobs: int | None) -> None:
    (result,) = runner(tiny, "topk", max_new_tokens=3, seed=4, logprobs=logprobs).generate("the red")
    values = result.to_json()
    assert list(values) == FIELDS + (["logprobs"] if logprobs is not None else [])
    assert (values["sampler"], values["seed"], values["prompt"]) == ("topk", 4, "the red")
    assert values["params"] == neurogen.load_sampler("topk").params.model_dump()
    assert values["prompt_tokens"] == len(tiny.tokenizer.encode("the red"))
    assert values["new_tokens"] == len(values["token_ids"]) == 3
    assert values["tokens_per_second"] == pytest.approx(3 / values["seconds"])


def test_logprobs_are_listed_for_every_token_with_its_text(stories: LanguageModel) -> None:
    (result,) = runner(stories, max_new_tokens=5, logprobs=2).generate(GIRL)
    assert result.logprobs is not None
    assert [entry["token_id"] for entry in result.logprobs] == result.token_ids
    assert "".join(entry["text"] for entry in result.logprobs) == result.text
    for entry in result.logprobs:
        assert list(entry) == ["token_id", "text", "logprob", "top"]
        first, second = entry["top"]
        assert first == {key: entry[key] for key in ("token_id", "text", "logprob")}  # greedy takes the most probable
        assert first["logprob"] >= second["logprob"]


@pytest.mark.slow
def test_a_chat_model_answers_and_ends_its_turn(smollm2: LanguageModel) -> None:
    question = "What is the capital of France?"
    (result,) = runner(smollm2, max_new_tokens=64).generate(question)
    assert "Paris" in result.text
    assert result.finish_reason == "eos"
    assert result.text == result.text.strip()
    assert result.prompt_tokens == len(smollm2.tokenizer.encode_chat([{"role": "user", "content": question}]))


@pytest.mark.slow
def test_a_chat_model_can_continue_text(smollm2: LanguageModel) -> None:
    (result,) = runner(smollm2, max_new_tokens=4, chat=False).generate("The capital of France is")
    assert result.text.startswith(" Paris")
    assert result.prompt_tokens == len(smollm2.tokenizer.encode("The capital of France is"))
