"""Continuous decoding: nobody is lost, nobody is disturbed by who joins and leaves, errors stay where they arise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen import API_VERSION, ContractError, InvalidLogitsError, ModelError, Param, ParameterError, Sampler
from neurogen.contract.sampler import State
from neurogen.decoding.engine import Engine, Request, Step
from neurogen.decoding.order import largest
from neurogen.models.language_model import LanguageModel

GIRL = "Once upon a time, there was a little girl"
LILY = (
    " named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, "
    "but it was too high."
)
TEXTS = [GIRL, "Tom", "The sun was bright and the birds sang. A cat sat on the mat and", "One day, a dog"]


@dataclass
class Calls:
    """What a model's forward was called with: [rows, new tokens] of every call."""

    shapes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def prefilled(self) -> int:
        """Rows that were given more than one token."""
        return sum(rows for rows, new in self.shapes if new > 1)

    @property
    def decoded(self) -> list[int]:
        """Rows of each call with one token a row."""
        return [rows for rows, new in self.shapes if new == 1]


def watch(model: LanguageModel, change: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None) -> Calls:
    """Record the calls of forward; `change` makes the logits from (logits, input_ids, position_ids)."""
    calls, inner = Calls(), model.forward

    def forward(input_ids: Tensor, mask: Tensor, position_ids: Tensor | None = None, cache: Any = None) -> Any:
        assert position_ids is not None
        calls.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        logits, cache = inner(input_ids, mask, position_ids, cache)
        return (logits if change is None else change(logits, input_ids, position_ids)), cache

    model.forward = forward  # type: ignore[method-assign]
    return calls


def count_upwards(logits: Tensor, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Logits of a model that continues every id with the next higher one."""
    scripted = torch.zeros_like(logits)
    scripted[torch.arange(len(logits)), input_ids[:, -1] + 1] = 50.0
    return scripted


def collect(steps: Iterator[Step]) -> dict[Any, list[Step]]:
    """Each key's steps; asserts that nothing follows a sequence's end."""
    found: dict[Any, list[Step]] = {}
    for step in steps:
        mine = found.setdefault(step.key, [])
        assert not mine or mine[-1].finish_reason is None, f"{step.key!r} goes on after its end"
        mine.append(step)
    return found


def tokens(engine: Engine, requests: Sequence[Request]) -> dict[Any, list[int]]:
    return {key: [step.token_id for step in steps] for key, steps in collect(engine.generate(requests)).items()}


def request(model: LanguageModel, text: str, new: int = 12, seed: int = 0, **values: Any) -> Request:
    return Request(tuple(model.tokenizer.encode(text)), new, seed, **values)


# What comes out


@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_continues_the_story_exactly_alone_and_beside_prompts_of_other_lengths(
    stories: LanguageModel, batch_size: int
) -> None:
    engine = Engine(stories, neurogen.load_sampler("greedy"), batch_size=batch_size)
    count = len(stories.tokenizer.encode(GIRL + LILY)) - len(stories.tokenizer.encode(GIRL))
    texts = TEXTS if batch_size > 1 else TEXTS[:1]
    chosen = tokens(engine, [request(stories, text, count, key=text) for text in texts])
    prompt = stories.tokenizer.encode(GIRL)
    assert stories.tokenizer.decode(prompt + chosen[GIRL]) == GIRL + LILY


@pytest.mark.parametrize("name", ["greedy", "topk", "topp"])
def test_tokens_do_not_depend_on_the_batch_size(stories: LanguageModel, name: str) -> None:
    sampler = neurogen.load_sampler(name)
    requests = [request(stories, text, 20 + i, seed=i, key=i) for i, text in enumerate(TEXTS + TEXTS[:2])]
    alone = {one.key: tokens(Engine(stories, sampler, batch_size=1), [one])[one.key] for one in requests}
    for batch_size in (1, 3, 64):
        assert tokens(Engine(stories, sampler, batch_size=batch_size), requests) == alone


def test_a_count_beyond_64_bits_is_as_good_as_the_largest(tiny: LanguageModel) -> None:
    sampler = neurogen.load_sampler("topk", k=5)
    huge = request(tiny, "once", 4, seed=1, params={"k": 2**70}, key="huge")
    all_of_them = request(tiny, "once", 4, seed=1, params={"k": 0}, key="all")
    found = tokens(Engine(tiny, sampler), [huge, all_of_them])
    assert found["huge"] == found["all"]


@pytest.mark.parametrize("name", ["max_new_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_what_is_no_whole_number_is_refused(tiny: LanguageModel, name: str, value: Any) -> None:
    engine = Engine(tiny, neurogen.load_sampler("greedy"))
    with pytest.raises(ParameterError, match=f"{name} must be an integer .*, got {value!r}"):
        engine.check(replace(request(tiny, "once", 4), **{name: value}))
    with pytest.raises(ParameterError, match=f"batch_size must be an integer >= 1, got {value!r}"):
        Engine(tiny, neurogen.load_sampler("greedy"), batch_size=value)


def test_rows_have_parameters_of_their_own(stories: LanguageModel) -> None:
    hot = request(stories, GIRL, 24, seed=5, params={"temperature": 3.0, "k": 200}, key="hot")
    cold = request(stories, GIRL, 24, seed=5, params={"temperature": 0.0}, key="cold")
    usual = request(stories, GIRL, 24, seed=5, key="usual")
    sampler = neurogen.load_sampler("topk", k=20)
    together = tokens(Engine(stories, sampler), [hot, cold, usual])
    greedy = tokens(Engine(stories, neurogen.load_sampler("greedy")), [replace(usual, key="greedy")])["greedy"]
    assert together["cold"] == greedy
    for one in (hot, usual):
        assert together[one.key] == tokens(Engine(stories, sampler), [one])[one.key]
    assert together["hot"] != greedy
    assert together["usual"] != together["hot"]


def test_logprobs_are_those_of_the_whole_sequence_without_a_cache(stories: LanguageModel) -> None:
    engine = Engine(stories, neurogen.load_sampler("topk", k=50, temperature=1.5))
    asking = request(stories, GIRL, 15, seed=3, logprobs=4, key="asking")
    chosen_only = request(stories, "Tom", 15, seed=4, logprobs=0, key="chosen only")
    silent = request(stories, TEXTS[2], 15, key="silent")
    steps = collect(engine.generate([asking, chosen_only, silent]))
    assert all(step.logprobs is None for step in steps["silent"])
    for one, count in ((asking, 4), (chosen_only, 0)):
        ids = [*one.prompt_ids, *(step.token_id for step in steps[one.key])]
        with torch.inference_mode():
            logits = stories.model(input_ids=torch.tensor([ids])).logits[0]
        expected = logits.float().log_softmax(-1)[len(one.prompt_ids) - 1 :]
        for row, step in zip(expected, steps[one.key], strict=False):
            assert step.logprobs is not None
            assert step.logprobs.logprob == pytest.approx(row[step.token_id].item(), abs=1e-4)
            values = [value for _, value in step.logprobs.top]
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
            assert [row[token].item() for token, _ in step.logprobs.top] == pytest.approx(values, abs=1e-4)


def test_more_logprobs_than_ids_gives_all_ids(tiny: LanguageModel) -> None:
    engine = Engine(tiny, neurogen.load_sampler("greedy"))
    (step,) = engine.generate([request(tiny, "the", 1, logprobs=10_000)])
    assert step.logprobs is not None
    assert sorted(token for token, _ in step.logprobs.top) == list(range(tiny.vocab_size))


@pytest.mark.parametrize("count", [1, 3, 40])
def test_of_equal_values_the_lowest_ids_are_listed_first(tiny: LanguageModel, count: int) -> None:
    high = [7, 50, 90, 200, 201]  # and all others equal, too

    def tie(logits: Tensor, *_: Tensor) -> Tensor:
        tied = torch.zeros_like(logits)
        tied[:, high] = 3.0
        return tied

    watch(tiny, tie)
    (step,) = Engine(tiny, neurogen.load_sampler("greedy")).generate([request(tiny, "the", 1, logprobs=count)])
    assert step.logprobs is not None
    listed = [token for token, _ in step.logprobs.top]
    assert listed == [*high, *(token for token in range(60) if token not in high)][:count]
    assert step.token_id == listed[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_values_stand_in_the_order_of_tokens(dtype: torch.dtype) -> None:
    values = torch.randint(-3, 4, (500,), generator=torch.Generator().manual_seed(0)).to(dtype)
    values[17] = float("nan")
    values[18:40] = float("-inf")
    ranks = sorted(range(500), key=lambda i: (not values[i].isnan(), -values[i].nan_to_num(0).item(), i))
    for count in (1, 2, 30, 470, 490, 500, 900):
        found, places = largest(values, count)
        assert places.tolist() == ranks[:count]
        assert found.nan_to_num(9).tolist() == values[places].nan_to_num(9).tolist()


def test_ids_without_text_are_never_drawn(tiny: LanguageModel) -> None:
    wide = replace(tiny, vocab_size=tiny.vocab_size + 80)

    def widen(logits: Tensor, *_: Tensor) -> Tensor:
        return torch.cat([logits, torch.full((len(logits), 80), 1e4)], dim=1)

    watch(wide, widen)
    for name in ("greedy", "topk", "topp"):
        sampler = neurogen.load_sampler(name)
        one = [request(tiny, "the red ball", 20, seed=1, logprobs=3)]
        narrow = [(step.token_id, step.logprobs) for step in Engine(tiny, sampler).generate(one)]
        assert [(step.token_id, step.logprobs) for step in Engine(wide, sampler).generate(one)] == narrow


def test_a_stop_id_ends_its_sequence_and_goes_before_length(tiny: LanguageModel) -> None:
    watch(tiny, count_upwards)
    engine = Engine(tiny, neurogen.load_sampler("greedy"))
    steps = collect(
        engine.generate(
            [
                Request((1, 100), 9, 0, stop_ids=frozenset({104}), key="stops"),
                Request((1, 100), 4, 0, stop_ids=frozenset({104}), key="both"),
                Request((1, 100), 3, 0, stop_ids=frozenset({104}), key="length"),
            ]
        )
    )
    ends = {key: [(step.token_id, step.finish_reason) for step in mine][-1] for key, mine in steps.items()}
    assert ends == {"stops": (104, "eos"), "both": (104, "eos"), "length": (103, "length")}


# Who is in the batch


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_with_more_requests_than_rows_none_is_lost_and_none_doubled(tiny: LanguageModel, batch_size: int) -> None:
    calls = watch(tiny, count_upwards)
    lengths = [3, 1, 7, 2, 2, 9, 1, 4, 5, 1, 6]
    requests = [Request((1, *[50] * (i % 4), 60 + i), new, 0, key=i) for i, new in enumerate(lengths)]
    found = tokens(Engine(tiny, neurogen.load_sampler("greedy"), batch_size=batch_size), requests)
    assert found == {i: list(range(61 + i, 61 + i + new)) for i, new in enumerate(lengths)}
    assert max(calls.decoded) <= batch_size


def test_finished_rows_leave_the_batch(tiny: LanguageModel) -> None:
    calls = watch(tiny)
    requests = [Request((1, 60 + i, 70), new, 0, key=i) for i, new in enumerate((2, 4, 6))]
    tokens(Engine(tiny, neurogen.load_sampler("greedy"), batch_size=3), requests)
    assert calls.shapes == [(3, 3), (3, 1), (2, 1), (2, 1), (1, 1), (1, 1)]


def test_a_free_row_is_taken_at_the_next_step(tiny: LanguageModel) -> None:
    calls = watch(tiny)
    requests = [Request((1, 60 + i, 70), new, 0, key=i) for i, new in enumerate((2, 5, 4))]
    tokens(Engine(tiny, neurogen.load_sampler("greedy"), batch_size=2), requests)
    assert calls.shapes == [(2, 3), (2, 1), (1, 1), (1, 3), (2, 1), (2, 1), (1, 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_equal_prompts_are_run_once(tiny: LanguageModel, batch_size: int) -> None:
    calls = watch(tiny)
    same = [Request((1, 60, 70), 3 + i % 2, i, key=i) for i in range(5)]
    found = tokens(Engine(tiny, neurogen.load_sampler("topk"), batch_size=batch_size), same)
    assert calls.prefilled == 1
    calls.shapes.clear()
    for one in same:
        assert tokens(Engine(tiny, neurogen.load_sampler("topk")), [one])[one.key] == found[one.key]
    assert calls.prefilled == 5


def test_equal_prompts_among_others_are_run_once(tiny: LanguageModel) -> None:
    calls = watch(tiny)
    prompts = [(1, 60, 70), (1, 61, 70), (1, 60, 70), (1, 62, 70, 71), (1, 61, 70)]
    tokens(Engine(tiny, neurogen.load_sampler("greedy")), [Request(p, 2, 0, key=i) for i, p in enumerate(prompts)])
    assert calls.prefilled == 3


def test_requests_are_read_one_ahead_of_a_free_row(tiny: LanguageModel) -> None:
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for i in range(6):
            read.append(i)
            yield Request((1, 60 + i), 2, 0, key=i)

    steps = Engine(tiny, neurogen.load_sampler("greedy"), batch_size=2).generate(requests())
    assert read == []
    next(steps)
    assert read == [0, 1, 2]
    assert len(collect(steps)) == 6
    assert read == [0, 1, 2, 3, 4, 5]


def test_no_request_gives_no_step(tiny: LanguageModel) -> None:
    assert list(Engine(tiny, neurogen.load_sampler("greedy")).generate([])) == []


class Counter(Sampler):
    """Chooses the number of its steps; 0 if its memory is not that of the row's own sequence."""

    name = "counter"
    api_version = API_VERSION
    stateful = True

    def new_state(self, batch: int) -> State:
        return {"count": torch.zeros(batch, dtype=torch.int64), "owner": torch.full((batch, 2), -1)}

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: State) -> Tensor:
        (memory,) = state
        memory["count"] += 1
        fresh = memory["count"] == 1
        memory["owner"][fresh] = torch.stack([seed, position], dim=1)[fresh]
        mine = (memory["owner"][:, 0] == seed) & (memory["owner"][:, 1] + memory["count"] - 1 == position)
        return torch.where(mine, memory["count"], 0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_memory_and_position_follow_their_row_when_others_leave_and_join(tiny: LanguageModel, batch_size: int) -> None:
    lengths = [5, 1, 8, 3, 2, 9, 4, 1]
    requests = [Request((1, *[50] * (i % 3), 60), new, 100 + i, key=i) for i, new in enumerate(lengths)]
    found = tokens(Engine(tiny, Counter(), batch_size=batch_size), requests)
    assert found == {i: list(range(1, new + 1)) for i, new in enumerate(lengths)}


def test_position_counts_the_prompt(tiny: LanguageModel) -> None:
    seen: list[list[int]] = []

    class Watcher(Counter):
        def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: State) -> Tensor:
            seen.append(position.tolist())
            return super()._sample(logits, seed, position, params, *state)

    tokens(Engine(tiny, Watcher()), [Request((1, 60, 61), 2, 0, key="a"), Request((1,), 3, 0, key="b")])
    assert seen == [[3, 1], [4, 2], [3]]


class Shifted(Sampler):
    """Chooses the same id in every row: 10, or 20 where it is told so by a setting that rows cannot differ in."""

    class Params(neurogen.SamplerParams):
        far: bool = Param(False, description="Choose 20.")

    name = "shifted"
    api_version = API_VERSION

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: State) -> Tensor:
        return torch.full_like(seed, 20 if params.far else 10)


def test_requests_whose_settings_differ_are_not_decoded_together(tiny: LanguageModel) -> None:
    requests = [Request((1, 60 + i), 2, 0, params={"far": i % 3 == 2}, key=i) for i in range(6)]
    found = tokens(Engine(tiny, Shifted()), requests)
    assert found == {i: [20 if i % 3 == 2 else 10] * 2 for i in range(6)}


# Ending early


def test_a_cancelled_sequence_gives_no_token_more_and_the_others_go_on(tiny: LanguageModel) -> None:
    watch(tiny, count_upwards)
    engine = Engine(tiny, neurogen.load_sampler("greedy"), batch_size=3)
    requests = [Request((1, start), 6, 0, key=start) for start in (60, 100, 140, 180)]
    found: dict[int, list[int]] = {}
    for step in engine.generate(requests):
        found.setdefault(step.key, []).append(step.token_id)
        if step.token_id == 62:
            assert engine.cancel(100)  # has not had its token of this step yet
            assert engine.cancel(60)
            assert not engine.cancel(60), "it is cancelled already"
            assert not engine.cancel("unknown")
    assert found == {60: [61, 62], 100: [101], 140: [*range(141, 147)], 180: [*range(181, 187)]}
    assert not engine.cancel(140), "it has ended"


def test_the_next_in_line_can_be_cancelled(tiny: LanguageModel) -> None:
    engine = Engine(tiny, neurogen.load_sampler("greedy"), batch_size=1)
    requests = [Request((1, 60), 3, 0, key=key) for key in "abc"]
    steps = engine.generate(requests)
    next(steps)
    assert engine.cancel("b")
    assert set(collect(steps)) == {"a", "c"}


def test_an_engine_is_usable_after_its_generator_was_closed(tiny: LanguageModel) -> None:
    engine = Engine(tiny, neurogen.load_sampler("topk"), batch_size=2)
    requests = [request(tiny, text, 6, seed=i, key=i) for i, text in enumerate(("the", "red", "ball"))]
    expected = tokens(engine, requests)
    steps = engine.generate(requests)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not engine.cancel(0), "nothing is running"
    assert tokens(engine, requests) == expected


def test_two_generators_of_one_engine_do_not_disturb_each_other(tiny: LanguageModel) -> None:
    engine = Engine(tiny, neurogen.load_sampler("topk"), batch_size=2)
    one, two = ([request(tiny, text, 5, seed=i, key=text)] for i, text in enumerate(("the red", "lily")))
    pairs = list(zip(engine.generate(one), engine.generate(two), strict=True))
    assert [a.token_id for a, _ in pairs] == tokens(engine, one)["the red"]
    assert [b.token_id for _, b in pairs] == tokens(engine, two)["lily"]


# What goes wrong


@pytest.mark.parametrize("name", ["greedy", "topk", "topp"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_invalid_logits_end_their_sequence_only(tiny: LanguageModel, name: str, bad: float) -> None:
    def spoil(logits: Tensor, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        scripted = count_upwards(logits, input_ids, position_ids)
        scripted[input_ids[:, -1] == 104] = bad
        return scripted

    watch(tiny, spoil)
    engine = Engine(tiny, neurogen.load_sampler(name), batch_size=2)
    steps = collect(engine.generate([Request((1, start), 8, 0, key=f"from {start}") for start in (60, 100, 140)]))
    assert {key: len(mine) for key, mine in steps.items()} == {"from 60": 8, "from 100": 5, "from 140": 8}
    *before, last = steps["from 100"]
    assert [step.token_id for step in before] == [101, 102, 103, 104]
    assert (last.token_id, last.finish_reason) == (-1, "error")
    assert isinstance(last.error, InvalidLogitsError)
    assert "'from 100'" in str(last.error)
    assert "4 new token" in str(last.error)
    assert all(step.error is None for key in ("from 60", "from 140") for step in steps[key])


@pytest.mark.parametrize(("token", "message"), [(400, "the id 400"), (-7, "the id -7"), (-1, "kept no token")])
def test_a_sampler_that_returns_an_impossible_id_is_blamed(tiny: LanguageModel, token: int, message: str) -> None:
    class Wrong(Shifted):
        def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: Any, *state: State) -> Tensor:
            return torch.full_like(seed, token)

    with pytest.raises(ContractError, match=message) as caught:
        list(Engine(tiny, Wrong()).generate([Request((1, 60), 2, 0, key="mine")]))
    assert "'mine'" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "parameter", "message"),
    [
        ({"prompt_ids": ()}, "prompt_ids", "no token"),
        ({"prompt_ids": (1, 320)}, "prompt_ids", r"\[0, 319\]"),
        ({"prompt_ids": (1, -1)}, "prompt_ids", r"\[0, 319\]"),
        ({"max_new_tokens": 0}, "max_new_tokens", "integer >= 1, got 0"),
        ({"seed": 2**63}, "seed", "64 bits"),
        ({"logprobs": -1}, "logprobs", "integer >= 0, got -1"),
        ({"params": {"k": -1}}, "k", "topk: k must be an integer >= 0, got -1"),
        ({"params": {"temperature": -0.5}}, "temperature", "got -0.5"),
        ({"params": {"top": 3}}, "top", "no parameter 'top'"),
    ],
)
@pytest.mark.parametrize("lazily", [False, True])
def test_a_request_outside_its_domain_is_refused(
    tiny: LanguageModel, values: dict[str, Any], parameter: str, message: str, lazily: bool
) -> None:
    calls = watch(tiny)
    one = replace(Request((1, 60), 2, 0), **values)
    engine = Engine(tiny, neurogen.load_sampler("topk"))
    with pytest.raises(ParameterError, match=message) as caught:
        list(engine.generate(iter([one]) if lazily else [one]))
    assert caught.value.parameter == parameter
    assert calls.shapes == []


def test_a_list_is_checked_before_the_first_token(tiny: LanguageModel) -> None:
    good, bad = Request((1, 60), 2, 0), Request((1, 60), 0, 0)
    with pytest.raises(ParameterError):
        Engine(tiny, neurogen.load_sampler("greedy"), batch_size=1).generate([good, good, bad])


@pytest.mark.parametrize(
    ("prompt", "new", "advice"), [(60, 5, "at most 4 new tokens, or shorten the prompt"), (70, 5, "shorten the prompt")]
)
def test_what_does_not_fit_the_context_is_refused_with_numbers_and_advice(
    tiny: LanguageModel, prompt: int, new: int, advice: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        Engine(tiny, neurogen.load_sampler("greedy")).check(Request((5,) * prompt, new, 0))
    message = str(caught.value)
    assert all(number in message for number in (f"{prompt} tokens", f"is {new}", f"{prompt + new} tokens", "holds 64"))
    assert advice in message


def test_the_context_can_be_filled(tiny: LanguageModel) -> None:
    engine = Engine(tiny, neurogen.load_sampler("greedy"))
    assert len(list(engine.generate([Request((5,) * 60, 4, 0)]))) == 4


def test_batch_size_must_be_positive(tiny: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="batch_size must be an integer >= 1, got 0"):
        Engine(tiny, neurogen.load_sampler("greedy"), batch_size=0)


def test_a_model_with_another_memory_is_refused(tiny: LanguageModel) -> None:
    class Recurrent:
        pass

    class OtherCache:
        layers = [Recurrent()]

    tiny.new_cache = OtherCache  # type: ignore[method-assign,assignment]
    with pytest.raises(ModelError, match=r"Recurrent.*attention layers only"):
        Engine(tiny, neurogen.load_sampler("greedy"))
