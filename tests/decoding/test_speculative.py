"""Speculative decoding gives what the target alone gives: the same greedy tokens, the same distribution otherwise."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import power_divergence
from torch import Tensor

import neurogen
from neurogen import Param, ParameterError, Sampler, SamplerParams, TruncationSampler, reference
from neurogen.contract.sampler import RowParams
from neurogen.decoding.engine import Engine, Request, Step
from neurogen.decoding.speculative import SpeculativeEngine
from neurogen.errors import ContractError, InvalidLogitsError
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.registry.registry import load_processors

ALPHA = 1e-4
"""The level of each G-test; the seeds are fixed, so that each always passes or always fails."""

SEEDS = 12_000
SMALL = 12
LEAST = 5  # expected in a cell of a G-test; rarer sequences share one
TEXTS = ["Once upon a time", "Tom", "The sun was bright and the birds sang. A cat sat on", "One day, a dog", "A"]


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def perturbed(starter: LanguageModel) -> LanguageModel:
    """A draft that is right often, but not always."""
    model = copy.deepcopy(starter.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * weights.std() * torch.randn(weights.shape, generator=generator))
    return replace(starter, model=model)


def random_model(like: LanguageModel, vocab: int, seed: int, spread: float = 0.6) -> LanguageModel:
    """A random Llama with another's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=like.context_length,
        initializer_range=spread,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    return replace(like, name=f"random{seed}", model=model, vocab_size=vocab, eos_ids=frozenset())


@pytest.fixture
def small(tiny: LanguageModel) -> LanguageModel:
    return random_model(tiny, SMALL, seed=1)


@pytest.fixture
def small_draft(small: LanguageModel) -> LanguageModel:
    """A draft that resembles `small`, and is still another model."""
    draft = random_model(small, SMALL, seed=2)
    with torch.no_grad():
        for own, other in zip(draft.model.parameters(), small.model.parameters(), strict=True):
            own.copy_(0.25 * own + 0.97 * other)
    return draft


def collect(steps: Iterator[Step]) -> dict[Any, list[Step]]:
    """Each key's steps; asserts that nothing follows a sequence's end."""
    found: dict[Any, list[Step]] = {}
    for step in steps:
        mine = found.setdefault(step.key, [])
        assert not mine or mine[-1].finish_reason is None, f"{step.key!r} goes on after its end"
        mine.append(step)
    return found


def tokens(engine: Engine | SpeculativeEngine, requests: Sequence[Request]) -> dict[Any, list[int]]:
    return {key: [step.token_id for step in steps] for key, steps in collect(engine.generate(requests)).items()}


def requests_of(model: LanguageModel, **values: Any) -> list[Request]:
    encoded = [tuple(model.tokenizer.encode(text)) for text in TEXTS]
    return [Request(ids, 15 + i, i, key=i, stop_ids=model.eos_ids, **values) for i, ids in enumerate(encoded)]


# The same tokens


@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_greedy_is_plain_greedy_token_by_token(
    starter: LanguageModel, perturbed: LanguageModel, draft_tokens: int
) -> None:
    greedy = neurogen.load_sampler("greedy")
    requests = requests_of(starter)
    plain = tokens(Engine(starter, greedy), requests)
    stranger = random_model(starter, starter.vocab_size, seed=3)
    rates = []
    for draft in (perturbed, stranger):
        engine = SpeculativeEngine(starter, draft, greedy, draft_tokens=draft_tokens, batch_size=3)
        assert tokens(engine, requests) == plain
        rates.append(engine.acceptance_rate)
    assert 0.5 < rates[0] < 1
    assert rates[1] < 0.1


def test_a_draft_that_equals_the_target_is_always_right(starter: LanguageModel) -> None:
    engine = SpeculativeEngine(starter, starter, neurogen.load_sampler("greedy"), draft_tokens=4)
    tokens(engine, [replace(requests_of(starter)[0], max_new_tokens=11)])
    assert (engine.acceptance_rate, engine.tokens_per_pass) == (1.0, 5.0)  # one from the prompt, two rounds of five


def test_a_draft_without_a_valid_distribution_leaves_every_token_to_the_target(
    small: LanguageModel, small_draft: LanguageModel
) -> None:
    with torch.no_grad():
        small_draft.model.lm_head.weight.fill_(torch.nan)
    sampler = neurogen.load_sampler("topk", k=5)
    requests = [Request((1, 2, 3), 9, seed, key=seed) for seed in range(20)]
    engine = SpeculativeEngine(small, small_draft, sampler)
    assert tokens(engine, requests) == tokens(Engine(small, sampler), requests)
    assert (engine.acceptance_rate, engine.tokens_per_pass) == (0, 1)


# The same distribution


class MinP(TruncationSampler):
    """Keeps tokens of at least a quarter of the largest probability: what a stranger's plugin may look like."""

    name = "min-p-here"

    class Params(SamplerParams):
        temperature: float = Param(1.0, ge=0, description="divides the logits")

    def keep(self, logits: Tensor, params: RowParams) -> Tensor:
        probabilities = torch.softmax(logits.double() / params.temperature[:, None], dim=-1)
        return probabilities >= 0.25 * probabilities.amax(dim=-1, keepdim=True)


def _topk(row: np.ndarray) -> np.ndarray:
    return reference.probs(row, reference.topk_support(row, 4, 0.9), 0.9)


def _topp(row: np.ndarray) -> np.ndarray:
    assert reference.nucleus_margin(row, 0.8, 1.0) > 1e-6
    return reference.probs(row, reference.topp_support(row, 0.8, 1.0), 1.0)


def _min_p(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    kept = np.where(weights >= 0.25, weights, 0)
    return np.asarray(kept / kept.sum())


CASES: dict[str, tuple[Callable[[], Sampler], Callable[[np.ndarray], np.ndarray]]] = {
    "topk": (lambda: neurogen.load_sampler("topk", k=4, temperature=0.9), _topk),
    "topp": (lambda: neurogen.load_sampler("topp", p=0.8, temperature=1.0), _topp),
    "third party": (MinP, _min_p),
}


def joint(
    model: LanguageModel, prompt: tuple[int, ...], new: int, probabilities: Callable[[np.ndarray], np.ndarray]
) -> dict[tuple[int, ...], float]:
    """The exact probability of every continuation of `new` tokens, in float64 from the model's logits."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(new):
        ids = torch.tensor([prompt + behind for behind in found])
        rows = model.forward(ids, torch.ones_like(ids))[0].double().numpy()
        found = {
            (*behind, token): before * float(share)
            for (behind, before), row in zip(found.items(), rows, strict=True)
            for token, share in enumerate(probabilities(row))
            if share > 0
        }
    return found


def g_test(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """The p-value; sequences that are expected less than `LEAST` times are one cell."""
    total = counts.total()
    common = sorted(expected, key=lambda sequence: -expected[sequence])
    rare = 0.0
    while rare < LEAST or expected[common[-1]] * total < LEAST:
        rare += expected[common.pop()] * total
    observed = [float(counts[sequence]) for sequence in common]
    wanted = [expected[sequence] * total for sequence in common]
    observed.append(total - sum(observed))
    wanted.append(total - sum(wanted))
    return float(power_divergence(observed, wanted, lambda_="log-likelihood").pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("draft_tokens", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_joint_distribution_of_the_first_tokens_is_the_targets(
    small: LanguageModel, small_draft: LanguageModel, name: str, draft_tokens: int
) -> None:
    sampler, probabilities = CASES[name][0](), CASES[name][1]
    prompt, new = (1, 7, 3), 4 if draft_tokens == 1 else 3
    # Five tokens asked for, so that those looked at are drafted, rejected, replaced and drawn behind accepted ones.
    requests = (Request(prompt, 5, seed, key=seed) for seed in range(SEEDS))
    engine = SpeculativeEngine(small, small_draft, sampler, draft_tokens=draft_tokens, batch_size=500)
    counts = Counter(tuple(ids[:new]) for ids in tokens(engine, requests).values())  # type: ignore[arg-type]
    assert counts.total() == SEEDS
    expected = joint(small, prompt, new, probabilities)
    assert sum(expected.values()) == pytest.approx(1)
    assert set(counts) <= set(expected)
    assert 0.1 < engine.acceptance_rate < 0.9
    assert g_test(counts, expected) > ALPHA
    assert g_test(counts, joint(small_draft, prompt, new, probabilities)) < ALPHA


def test_a_seed_gives_the_same_tokens_again_and_another_gives_others(
    small: LanguageModel, small_draft: LanguageModel
) -> None:
    engine = SpeculativeEngine(small, small_draft, neurogen.load_sampler("topk"))
    requests = [Request((1, 2, 3), 20, seed, key=seed) for seed in (-5, 2**63 - 1)]
    found = tokens(engine, requests)
    assert tokens(engine, requests) == found
    assert found[-5] != found[2**63 - 1]


@pytest.mark.parametrize("name", ["topk", "topp"])
def test_tokens_do_not_depend_on_what_is_decoded_beside_them(
    starter: LanguageModel, perturbed: LanguageModel, name: str
) -> None:
    sampler = neurogen.load_sampler(name)
    own = [{}, {"temperature": 0.5}, {"temperature": 0}, {"temperature": 1.5}, {}]
    requests = [replace(one, params=params) for one, params in zip(requests_of(starter), own, strict=True)]
    requests += [replace(one, key=one.key + 10, max_new_tokens=one.key + 1) for one in requests]
    engine = SpeculativeEngine(starter, perturbed, sampler, draft_tokens=3, batch_size=4)
    together = tokens(engine, requests)
    alone = SpeculativeEngine(starter, perturbed, sampler, draft_tokens=3, batch_size=1)
    assert together == {one.key: tokens(alone, [one])[one.key] for one in requests}
    assert together[2] == tokens(Engine(starter, sampler), requests)[2]  # at temperature 0


# Ends


def test_end_of_sequence_within_accepted_drafts_is_the_last_token(small: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    request = Request((1, 2, 3), 20, 0)
    plain = tokens(Engine(small, greedy), [request])[None]
    for place, token in enumerate(plain):
        end = plain.index(token)
        engine = SpeculativeEngine(small, small, greedy, draft_tokens=6)
        steps = collect(engine.generate([replace(request, stop_ids=frozenset({token}))]))[None]
        assert [step.token_id for step in steps] == plain[: end + 1], place
        assert steps[-1].finish_reason == "eos"


def test_as_many_tokens_come_as_were_asked_for_however_they_fall_into_rounds(small: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    plain = tokens(Engine(small, greedy), [Request((5,), 12, 0)])[None]
    engine = SpeculativeEngine(small, small, greedy, draft_tokens=4, batch_size=3)
    found = collect(engine.generate([Request((5,), new, 0, key=new) for new in range(1, 13)]))
    for new, steps in found.items():
        assert [step.token_id for step in steps] == plain[:new]
        assert [step.finish_reason for step in steps] == [None] * (new - 1) + ["length"]
    assert sorted(found) == list(range(1, 13))


def test_the_whole_context_can_be_used(small: LanguageModel, small_draft: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    engine = SpeculativeEngine(small, small_draft, greedy, draft_tokens=5)
    requests = [Request((1, 2), small.context_length - 2, 0, key=0), Request((3,), 30, 0, key=1)]
    assert tokens(engine, requests) == tokens(Engine(small, greedy), requests)


def test_nothing_follows_a_sequence_that_was_cancelled_within_a_round(small: LanguageModel) -> None:
    engine = SpeculativeEngine(small, small, neurogen.load_sampler("greedy"), draft_tokens=5)
    found: Counter[str] = Counter()
    for step in engine.generate([Request((1, 2), 20, 0, key="a"), Request((3,), 20, 0, key="b")]):
        found[step.key] += 1
        if step.key == "a" and found["a"] == 3:
            assert engine.cancel("a")
            assert not engine.cancel("a")
    assert found == {"a": 3, "b": 20}


def test_log_probabilities_are_those_of_the_target(small: LanguageModel, small_draft: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    request = Request((1, 2), 12, 0, logprobs=2)
    plain = collect(Engine(small, greedy).generate([request]))[None]
    found = collect(SpeculativeEngine(small, small_draft, greedy).generate([request]))[None]
    for step, other in zip(found, plain, strict=True):
        assert step.logprobs is not None
        assert other.logprobs is not None
        assert step.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
        assert [token for token, _ in step.logprobs.top] == [token for token, _ in other.logprobs.top]


# Errors


def test_a_target_without_a_valid_distribution_ends_that_sequence_alone(
    small: LanguageModel, small_draft: LanguageModel
) -> None:
    inner = small.forward_last

    def forward_last(ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, count: int) -> tuple[Tensor, Any]:
        logits, cache = inner(ids, mask, positions, cache, count=count)
        return logits.masked_fill((positions[:, -count:] >= 9)[:, :, None], torch.nan), cache

    small.forward_last = forward_last  # type: ignore[method-assign, assignment]
    engine = SpeculativeEngine(small, small_draft, neurogen.load_sampler("topk"), draft_tokens=3)
    found = collect(engine.generate([Request((1, 2, 3, 4), 20, 0, key="long"), Request((1,), 8, 0, key="short")]))
    assert len(found["short"]) == 8
    assert found["short"][-1].finish_reason == "length"
    assert len(found["long"]) == 7  # ids 4 to 9, and the error
    assert found["long"][-1].finish_reason == "error"
    assert isinstance(found["long"][-1].error, InvalidLogitsError)
    assert "after 6 new token(s)" in str(found["long"][-1].error)


class Beyond(Sampler):
    """Draws an id that does not exist."""

    name = "beyond"

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: Any) -> Tensor:
        return torch.full((len(logits),), int(position.max()) % 2 * 1000)

    def _probs(self, logits: Tensor, params: RowParams) -> Tensor:
        return torch.softmax(logits.float(), dim=-1)


def test_a_sampler_that_draws_an_id_that_cannot_be_is_blamed(small: LanguageModel) -> None:
    engine = SpeculativeEngine(small, small, Beyond())
    with pytest.raises(ContractError, match=r"'beyond' .* returned the id 1000"):
        list(engine.generate([Request((1, 2), 9, 0)]))


@pytest.mark.parametrize("name", ["draft_tokens", "batch_size"])
@pytest.mark.parametrize("value", [0, True, 1.5])
def test_numbers_outside_their_domain_are_refused(small: LanguageModel, name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"{name} must be an integer >= 1, got {value!r}"):
        SpeculativeEngine(small, small, neurogen.load_sampler("greedy"), **{name: value})


def test_a_sampler_with_memory_is_refused(small: LanguageModel) -> None:
    with pytest.raises(ParameterError, match="without memory, and 'mirostat' has one"):
        SpeculativeEngine(small, small, neurogen.load_sampler("mirostat"))


def test_processors_are_refused(small: LanguageModel) -> None:
    engine = SpeculativeEngine(small, small, neurogen.load_sampler("greedy"))
    request = Request((1, 2), 5, 0, processors=load_processors("repetition-penalty(penalty=1.2)"), key="mine")
    for call in (engine.check, lambda request: list(engine.generate([request]))):
        with pytest.raises(ParameterError, match="takes no processors, and request 'mine' has repetition-penalty"):
            call(request)


def test_a_draft_of_another_vocabulary_is_refused(
    starter: LanguageModel, small: LanguageModel, tiny: LanguageModel
) -> None:
    greedy = neurogen.load_sampler("greedy")
    with pytest.raises(ParameterError, match=r"'random1' has another vocabulary .* it has 12 tokens, not 320"):
        SpeculativeEngine(tiny, small, greedy)
    other = random_model(starter, tiny.vocab_size, seed=4)
    with pytest.raises(ParameterError, match=r"another vocabulary .* id \d+ is .* there, and .* here"):
        SpeculativeEngine(tiny, other, greedy)


def test_a_draft_on_another_device_is_refused(small: LanguageModel) -> None:
    elsewhere = replace(small, name="elsewhere", device=torch.device("meta"))
    with pytest.raises(ParameterError, match="'elsewhere' is on meta and the model 'random1' on cpu"):
        SpeculativeEngine(small, elsewhere, neurogen.load_sampler("greedy"))


def test_what_the_drafts_context_does_not_hold_is_refused(small: LanguageModel, small_draft: LanguageModel) -> None:
    engine = SpeculativeEngine(small, replace(small_draft, context_length=16), neurogen.load_sampler("greedy"))
    with pytest.raises(ParameterError, match=r"The draft cannot follow this request.* of 'random2' holds 16"):
        engine.check(Request((1, 2), 15, 0))
    assert len(list(engine.generate([Request((1, 2), 14, 0)]))) == 14
