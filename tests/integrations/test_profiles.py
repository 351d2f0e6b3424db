"""Profiles against the programs themselves: transformers, and where they are installed llama.cpp and vLLM.

The same logits go through the program's own functions, in the order in which it calls them. What is compared is what
can be drawn and with which probability. All three compute in float32: a row in which a token lies
within that precision of a border is passed over, and those that are compared are counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import neurogen
from neurogen import ParameterError
from neurogen.integrations.profiles import PROFILES, profile, profile_class

NUDGE = 1e-5
TOLERANCE = 3e-6
ROWS = 30
Row = np.ndarray
Answer = dict[int, float]
"""Token -> probability, of what can be drawn."""


def rows(seed: int, *, tied: bool) -> Iterator[Row]:
    """Rows of 1 to 60 float32 logits, some of 3000; tied ones are multiples of 1/2, exact at every temperature here."""
    rng = np.random.default_rng(seed)
    for number in range(ROWS):
        size = 3000 if number % 10 == 9 else int(rng.integers(1, 60))
        row = (rng.normal(size=size) * rng.choice([0.5, 1.0, 3.0])).astype(np.float32)
        if tied:
            row = (np.round(row * 2) / 2).astype(np.float32)
        if number % 4 == 3:
            row[rng.random(len(row)) < 0.3] = -np.inf
            row[rng.integers(len(row))] = 1.0
        yield row


PARAMETERS: list[dict[str, float]] = [
    {},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0},
    {"top_k": 1},
    {"top_k": 5, "top_p": 1.0, "min_p": 0.0, "temperature": 0.5},
    {"top_k": 1000},
    {"top_k": 0, "top_p": 0.9, "min_p": 0.0},
    {"top_k": 0, "top_p": 0.3, "min_p": 0.0, "temperature": 2.0},
    {"top_k": 0, "top_p": 0.001, "min_p": 0.0, "temperature": 1.5},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.2, "temperature": 1.5},
    {"top_k": 0, "top_p": 1.0, "min_p": 1.0, "temperature": 0.5},
    {"top_k": 7, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.1, "temperature": 0.5},
]
TYPICAL: list[dict[str, float]] = [
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 0.5, "temperature": 1.0},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8, "temperature": 1.5},
]


def answer_of(name: str, row: Row, params: dict[str, float]) -> Answer:
    sampler, logits = profile(name, **params), torch.from_numpy(row)[None]
    kept, probs = sampler.support(logits)[0], sampler.probs(logits)[0]
    return {int(token): float(probs[token]) for token in kept.nonzero().flatten()}


def is_clear(name: str, row: Row, params: dict[str, float]) -> bool:
    """Whether what is kept stays the same when a parameter moves by less than a float32 can tell."""
    whole = {**profile_class(name).Params().model_dump(), **params}
    logits = torch.from_numpy(row)[None]
    expected = profile(name, **params).support(logits)
    for parameter in ("top_p", "min_p", "typical_p"):
        value = whole.get(parameter, 1.0)
        for moved in (value * (1 - NUDGE), value * (1 + NUDGE)):
            if 0 < value < 1 and not profile(name, **{**whole, parameter: moved}).support(logits).equal(expected):
                return False
    return True


def compare(name: str, program: Callable[[Row, dict[str, float]], Answer], cases: list[dict[str, float]]) -> int:
    """How many rows were compared.

    They are compared token by token, but where a nucleus ends among equal logits: which of them stay is left to
    torch.sort, which is not stable. There the logits that are left are compared, and how often each.
    """
    compared = 0
    for number, params in enumerate(cases):
        for tied in (False, True):
            for row in rows(number, tied=tied):
                if is_clear(name, row, params):
                    ours, theirs, told = answer_of(name, row, params), program(row, params), f"{params} {row.tolist()}"
                    if tied and params.get("top_p", 1.0) < 1:
                        same_up_to_ties(row, ours, theirs, told)
                    else:
                        same(ours, theirs, told)
                    compared += 1
    return compared


def same(ours: Answer, theirs: Answer, told: str) -> None:
    assert sorted(ours) == sorted(theirs), told
    assert [ours[t] for t in sorted(ours)] == pytest.approx([theirs[t] for t in sorted(ours)], abs=TOLERANCE), told


def same_up_to_ties(row: Row, ours: Answer, theirs: Answer, told: str) -> None:
    """The same logits with the same probabilities, each as often."""
    mine, other = (sorted((float(row[token]), share) for token, share in one.items()) for one in (ours, theirs))
    assert len(mine) == len(other), told
    assert np.array(mine) == pytest.approx(np.array(other), abs=TOLERANCE), told


def answer(ids: Any, logits: Any) -> Answer:
    """Of logits that are left, at temperature 1."""
    x = np.asarray(logits, dtype=np.float64)
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    return {int(token): float(share) for token, share, value in zip(ids, p, x, strict=True) if value > -np.inf}


# transformers.


def by_transformers(row: Row, params: dict[str, float]) -> Answer:
    """What `generate(do_sample=True)` makes of the logits, by the processors that it builds for itself."""
    from transformers import GenerationConfig, PreTrainedConfig
    from transformers.generation import GenerationMixin

    class Model(GenerationMixin):
        config = PreTrainedConfig()

    given = {**GenerationConfig._get_default_generation_params(), **params, "do_sample": True}
    processors = Model()._get_logits_processor(GenerationConfig(**given), input_ids_seq_length=1)
    scores = processors(torch.zeros(1, 1, dtype=torch.int64), torch.from_numpy(row)[None].clone())
    return answer(range(len(row)), scores[0])


def test_transformers_keeps_and_weighs_the_same_tokens_ties_included() -> None:
    assert compare("transformers", by_transformers, PARAMETERS + TYPICAL) > 500


def test_transformers_has_the_same_defaults_and_bounds() -> None:
    from transformers import GenerationConfig
    from transformers.generation import logits_process as processors

    theirs, ours = GenerationConfig._get_default_generation_params(), profile("transformers").params.model_dump()
    for name in ("top_k", "top_p", "temperature", "typical_p"):
        assert ours[name] == theirs.get(name, 1.0)
    assert theirs.get("min_p") is None
    assert ours["min_p"] == 0
    assert ours["typical_p"] == 1
    for make in (
        lambda: processors.TopKLogitsWarper(-1),
        lambda: processors.TopPLogitsWarper(1.1),
        lambda: processors.MinPLogitsWarper(1.1),
        lambda: processors.TemperatureLogitsWarper(-1.0),
    ):
        with pytest.raises(ValueError):
            make()
    for wrong in ({"top_k": -1}, {"top_p": 1.1}, {"min_p": 1.1}, {"temperature": -1.0}):
        with pytest.raises(ParameterError, match=r"transformers: .* must be"):
            profile("transformers", **wrong)
    processors.TopPLogitsWarper(0.0)
    profile("transformers", top_p=0.0)


# llama.cpp.


class Llama:
    """llama.cpp's sampler chain in its default order on one row, up to the draw."""

    def __init__(self, params: dict[str, float]) -> None:
        self.api = api = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra bench)")
        whole = {**profile_class("llamacpp").Params().model_dump(), **params}
        self.chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for link in (
            api.llama_sampler_init_top_k(int(whole["top_k"])),
            api.llama_sampler_init_typical(whole["typical_p"], 0),
            api.llama_sampler_init_top_p(whole["top_p"], 0),
            api.llama_sampler_init_min_p(whole["min_p"], 0),
            api.llama_sampler_init_temp_ext(whole["temperature"], 0.0, 1.0),
        ):
            api.llama_sampler_chain_add(self.chain, link)

    def __call__(self, row: Row) -> Answer:
        api = self.api
        data = (api.llama_token_data * len(row))(*((i, float(x), 0.0) for i, x in enumerate(row)))
        array = api.llama_token_data_array(
            data=ctypes.cast(data, api.llama_token_data_p), size=len(row), selected=-1, sorted=False
        )
        api.llama_sampler_apply(self.chain, ctypes.byref(array))
        left = [(array.data[i].id, array.data[i].logit) for i in range(array.size)]
        api.llama_sampler_free(self.chain)
        return answer([token for token, _ in left], [logit for _, logit in left])


def by_llama_cpp(row: Row, params: dict[str, float]) -> Answer:
    return Llama(params)(row)


def test_llama_cpp_keeps_and_weighs_the_same_tokens() -> None:
    """Of equal logits at a border it keeps as many as we do, but which ones is left to its sort, which is not stable:
    there the logits that are left are compared. Rows with -inf are passed over for typical, which llama.cpp makes NaN.
    """
    compared = 0
    for number, params in enumerate(PARAMETERS + TYPICAL):
        for tied in (False, True):
            for row in rows(number, tied=tied):
                if not is_clear("llamacpp", row, params) or (params in TYPICAL and (tied or np.isneginf(row).any())):
                    continue
                ours, theirs = answer_of("llamacpp", row, params), by_llama_cpp(row, params)
                told = f"{params} {row.tolist()}"
                if tied:
                    same_up_to_ties(row, ours, theirs, told)
                else:
                    same(ours, theirs, told)
                compared += 1
    assert compared > 500


def test_llama_cpp_at_temperature_zero_leaves_the_largest() -> None:
    for row in rows(1, tied=False):
        assert list(by_llama_cpp(row, {"temperature": 0.0})) == list(answer_of("llamacpp", row, {"temperature": 0.0}))


def test_llama_cpp_counts_a_negative_k_as_none() -> None:
    given = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
    for row in rows(2, tied=False):
        same(answer_of("llamacpp", row, given), by_llama_cpp(row, given), str(row))
        same(answer_of("llamacpp", row, given), answer_of("llamacpp", row, {**given, "top_k": 0}), str(row))


# vLLM.


def by_vllm(row: Row, params: dict[str, float]) -> Answer:
    """As `vllm.v1.sample.sampler.Sampler.sample`: temperature, the processor of min-p, then top-k and top-p."""
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.v1.sample.logits_processor import builtin
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
    from vllm.v1.sample.sampler import Sampler

    given = vllm.SamplingParams(**params)
    logits = torch.from_numpy(row)[None].clone()
    logits = Sampler.apply_temperature(logits, torch.tensor([given.temperature]), True)
    processor = object.__new__(builtin.MinPLogitsProcessor)
    processor.min_p_count, processor.min_p = int(given.min_p > 0), torch.tensor([[given.min_p]])
    logits = processor.apply(logits)
    k = torch.tensor([given.top_k]) if 0 < given.top_k < len(row) else None
    p = torch.tensor([given.top_p]) if given.top_p < 1 else None
    return answer(range(len(row)), apply_top_k_top_p(logits, k, p)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vllm_keeps_and_weighs_the_same_tokens_ties_included() -> None:
    """By its functions for the CPU; its Triton kernel for CUDA does another thing with ties (docs/profiles.md)."""
    assert compare("vllm", by_vllm, PARAMETERS) > 450


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vllm_has_the_same_defaults_and_bounds() -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.exceptions import VLLMValidationError

    theirs = vllm.SamplingParams()
    for name, value in profile("vllm").params.model_dump().items():
        assert getattr(theirs, name) == value
    for name, value in (("top_k", -2), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("temperature", 2.1)):
        with pytest.raises(VLLMValidationError):
            vllm.SamplingParams(**{name: value})
    assert vllm.SamplingParams(temperature=1e-6).temperature == profile_class("vllm").COLDEST  # type: ignore[attr-defined]


def test_vllm_refuses_and_takes_what_its_documentation_says() -> None:
    for name, value in (("top_k", -2), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("temperature", 2.1)):
        with pytest.raises(ParameterError, match=rf"vllm: {name} must be"):
            profile("vllm", **{name: value})


def test_vllm_takes_a_temperature_just_above_zero_for_a_hundredth() -> None:
    logits = torch.tensor([[1.0, 1.005, 0.9]])
    expected = profile("vllm", temperature=0.01).probs(logits)
    assert profile("vllm", temperature=1e-6).probs(logits).equal(expected)
    assert profile("vllm", temperature=0.0).probs(logits).tolist() == [[0, 1, 0]]
    by_row = profile("vllm").probs(logits.repeat(2, 1), temperature=torch.tensor([1e-6, 0.0], dtype=torch.float64))
    assert by_row.tolist() == [expected[0].tolist(), [0, 1, 0]]


# By hand: what sets the programs apart.


def tokens(name: str, values: list[float], **params: float) -> list[int]:
    return sorted(answer_of(name, np.array(values, dtype=np.float32), params))


def test_tied_with_the_kth_are_kept_by_all_but_llama_cpp() -> None:
    values, off = [1.0, 2.0, 1.0, 0.0], {"top_p": 1.0, "min_p": 0.0}
    assert tokens("transformers", values, top_k=2, **off) == tokens("vllm", values, top_k=2, **off) == [0, 1, 2]
    assert tokens("llamacpp", values, top_k=2, **off) == [0, 1]


def test_a_nucleus_of_equal_logits_is_that_of_a_stable_sort() -> None:
    values = [1.0, 1.0, 1.0, 1.0]
    assert tokens("transformers", values, top_p=0.5) == tokens("vllm", values, top_p=0.5) == [2, 3]
    assert tokens("llamacpp", values, top_p=0.5) == [0, 1]


def test_llama_cpp_truncates_before_the_temperature() -> None:
    # exp(3) = 20 of exp(3) + exp(2) + exp(1) + exp(0) = 31.2 is 0.64; at temperature 1/2 it is 0.865 of it.
    values = [3.0, 2.0, 1.0, 0.0]
    given = {"top_k": 0, "top_p": 0.7, "min_p": 0.0, "temperature": 0.5}
    assert tokens("transformers", values, **given) == tokens("vllm", values, **given) == [0]
    assert tokens("llamacpp", values, **given) == [0, 1]
    logits = torch.tensor([values])
    assert profile("llamacpp", **given).probs(logits)[0, 0] == pytest.approx(1 / (1 + np.exp(-2)))  # but draws at 1/2


def test_vllm_takes_the_nucleus_of_what_min_p_leaves() -> None:
    # 0.4 0.3 0.2 0.1: min-p 0.6 leaves 4/7 and 3/7, of which the first reaches 0.5; before, it took two.
    values = np.log([0.4, 0.3, 0.2, 0.1]).tolist()
    assert tokens("vllm", values, top_p=0.5, min_p=0.6) == [0]
    assert tokens("transformers", values, top_p=0.5, min_p=0.6) == [0, 1]


def test_every_program_keeps_one_token_at_the_least_values() -> None:
    for name in PROFILES:
        least = {"top_p": 1e-9, "min_p": 1.0, "top_k": 1}
        assert tokens(name, [0.0, 3.0, -1.0], **least) == [1]
    assert tokens("transformers", [0.0, 3.0], top_p=0.0) == tokens("llamacpp", [0.0, 3.0], top_p=0.0) == [1]


# As samplers.


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_keeps_what_every_sampler_keeps(name: str) -> None:
    from neurogen.testing.conformance import check

    report = check(profile(name), quick=True)
    assert report.passed, report


@pytest.mark.parametrize("name", PROFILES)
def test_tokens_come_from_the_support_and_depend_on_seed_and_position_alone(name: str) -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(3))
    sampler = profile(name, top_k=30, top_p=0.9, min_p=0.01, temperature=1.2)
    ids = sampler.sample(logits, seed=torch.arange(40), position=7)
    assert sampler.support(logits).gather(1, ids[:, None]).all()
    for row in (0, 13, 39):
        assert sampler.sample(logits[row : row + 1], seed=row, position=7).item() == ids[row]


@pytest.mark.parametrize("name", PROFILES)
def test_each_row_may_have_parameters_of_its_own(name: str) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(4))
    given = {
        "top_k": torch.tensor([0, 3, 10, 50]),
        "top_p": torch.tensor([0.5, 1.0, 0.9, 0.2], dtype=torch.float64),
        "min_p": torch.tensor([0.0, 0.5, 0.05, 0.0], dtype=torch.float64),
        "temperature": torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64),
    }
    probs = profile(name).probs(logits, **given)
    for row in range(4):
        own = {parameter: values[row].item() for parameter, values in given.items()}
        assert probs[row].equal(profile(name, **own).probs(logits[row : row + 1])[0])


def test_names_and_parameters_that_there_are_not_are_refused_in_words() -> None:
    with pytest.raises(
        ParameterError, match=r"no profile 'llama.cpp'\. Choose one of llamacpp, transformers, vllm\. Did"
    ):
        profile("llama.cpp")
    with pytest.raises(ParameterError, match=r"vllm has no parameter 'typical_p'; it has: top_k"):
        profile("vllm", typical_p=0.5)
    assert repr(profile("transformers", top_k=4)) == (
        "transformers(top_k=4, top_p=1.0, min_p=0.0, typical_p=1.0, temperature=1.0)"
    )


def test_invalid_rows_are_named() -> None:
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [-torch.inf, -torch.inf], [torch.inf, 0.0]])
    for name in PROFILES:
        with pytest.raises(neurogen.InvalidLogitsError) as caught:
            profile(name).sample(logits)
        assert caught.value.rows == (1, 2, 3)
