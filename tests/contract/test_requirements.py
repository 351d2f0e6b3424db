"""A sampler that calls itself greedy and is not is refused when it is required to be, whatever it declares."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen import (
    Contract,
    ContractError,
    Param,
    ParameterError,
    PluginError,
    RowParams,
    Sampler,
    SamplerParams,
    TruncationSampler,
)

GREEDY = Contract(deterministic=True, argmax=True)
calls = [0]


def argmax(logits: Tensor) -> Tensor:
    """The lowest id of the largest logit."""
    return torch.from_numpy(logits.float().numpy().argmax(axis=-1))


class Honest(Sampler):
    """Greedy in plain torch; the impostors change one thing."""

    name = "impostor"
    api_version = 1
    deterministic = True

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: Any) -> Tensor:
        return argmax(logits)

    def _probs(self, logits: Tensor, params: RowParams) -> Tensor:
        return torch.nn.functional.one_hot(argmax(logits), logits.shape[1]).float()

    def _support(self, logits: Tensor, params: RowParams) -> Tensor:
        return self._probs(logits, params) > 0


def loaded(cls: type[Sampler], require: Contract) -> Sampler:
    """Register the class in a registry of its own, as the package `greedy-fork 6.6`, and load it."""
    module = types.ModuleType("greedy_fork")
    module.neurogen_samplers = neurogen.hookimpl(lambda: [cls])  # type: ignore[attr-defined]
    module.neurogen_samplers.__name__ = "neurogen_samplers"
    registry = neurogen.Registry(entry_points=(), disabled=())
    registry.register(module, distribution="greedy-fork", version="6.6")
    return registry.load_sampler("impostor", require=require)


def impostor(select: Callable[[Tensor, Tensor, Tensor], Tensor]) -> type[Sampler]:
    class Impostor(Honest):
        def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: Any) -> Tensor:
            return select(logits, seed, position)

    return Impostor


class Samples(TruncationSampler):
    """Temperature sampling that calls itself deterministic."""

    name = "impostor"
    api_version = 1
    deterministic = True

    class Params(SamplerParams):
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")

    def keep(self, logits: Tensor, params: RowParams) -> Tensor:
        return torch.ones_like(logits, dtype=torch.bool)


def random_among_ties(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    tied = (logits == logits.amax(dim=-1, keepdim=True)).double()
    return torch.multinomial(tied, 1).flatten()


def highest_id(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return logits.shape[1] - 1 - argmax(logits.flip(-1))


def wrong_in_half(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return argmax(logits.bfloat16() if logits.dtype == torch.float16 else logits)  # close values become equal


def rounds_to_half(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return argmax(logits.half())


def wrong_in_bfloat16(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return highest_id(logits, seed, position) if logits.dtype == torch.bfloat16 else argmax(logits)


def by_position(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return torch.where(position > 1000, highest_id(logits, seed, position), argmax(logits))


def by_seed(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return torch.where(seed < 0, highest_id(logits, seed, position), argmax(logits))


def by_row(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    odd = torch.arange(len(logits)) % 2 == 1
    return torch.where(odd, highest_id(logits, seed, position), argmax(logits))


def by_call(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    calls[0] += 1
    return highest_id(logits, seed, position) if calls[0] % 4 == 3 else argmax(logits)


def modifying(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    ids = argmax(logits)
    logits.sub_(1)
    return ids


def wrong_strides(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    flat = logits.as_strided(logits.shape, (logits.shape[1], 1))  # takes every tensor for contiguous
    return argmax(flat)


def ignores_negative(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return argmax(logits.clamp(min=0))


def misses_last_id(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    return argmax(logits[:, :-1])


IMPOSTORS = {
    "samples": (Samples, "float32 logits with seed"),
    "breaks ties at random": (impostor(random_among_ties), "is right, the lowest of .* tied ids"),
    "breaks ties by the highest id": (impostor(highest_id), "is right, the lowest of .* tied ids"),
    "wrong in float16 only": (impostor(wrong_in_half), "for torch.float16 logits"),
    "wrong in bfloat16 only": (impostor(wrong_in_bfloat16), "for torch.bfloat16 logits"),
    "compares float32 in float16": (impostor(rounds_to_half), "for torch.float32 logits"),
    "depends on position": (impostor(by_position), "with seed .* and position 123456"),
    "depends on seed": (impostor(by_seed), "with seed -9"),
    "depends on the row's index": (impostor(by_row), "it chose token"),
    "depends on earlier calls": (impostor(by_call), "it chose token"),
    "modifies its input": (impostor(modifying), "modified the logits"),
    "wrong on other strides": (impostor(wrong_strides), "for torch.float32 logits"),
    "ignores negative logits": (impostor(ignores_negative), "it chose token"),
    "misses the last id": (impostor(misses_last_id), "it chose token .* where 508"),
}


def test_greedy_keeps_the_contract_of_a_trainer() -> None:
    sampler = neurogen.load_sampler("greedy", require=GREEDY)
    assert sampler.sample(torch.tensor([[0.0, 2.0, 2.0]])).tolist() == [1]


def test_unmodified_base_of_the_impostors_keeps_it() -> None:
    assert loaded(Honest, GREEDY).origin == "greedy-fork 6.6"


@pytest.mark.parametrize("how", IMPOSTORS)
def test_impostor_is_refused_with_what_it_did(how: str) -> None:
    cls, did = IMPOSTORS[how]
    calls[0] = 0
    with pytest.raises(ContractError, match=did) as refused:
        loaded(cls, GREEDY)
    assert "'impostor' (greedy-fork 6.6)" in str(refused.value)


@pytest.mark.parametrize("how", IMPOSTORS)
def test_impostor_loads_where_nothing_is_required(how: str) -> None:
    assert loaded(IMPOSTORS[how][0], Contract()).name == "impostor"


def test_message_shows_choice_expectation_and_remedy() -> None:
    with pytest.raises(ContractError) as refused:
        loaded(impostor(misses_last_id), GREEDY)
    message = str(refused.value)
    assert "was required to be argmax and is not" in message
    assert "where 508 (logit 50) is right, the lowest id of the largest logit" in message
    assert "Uninstall or disable that package" in message


def test_determinism_alone_is_held_against_the_first_result() -> None:
    always_highest = impostor(highest_id)
    assert loaded(always_highest, Contract(deterministic=True)).name == "impostor"
    with pytest.raises(ContractError, match=r"was required to be deterministic and is not.*another seed and position"):
        loaded(impostor(by_position), Contract(deterministic=True))


def test_declared_indeterminism_is_refused_before_trying() -> None:
    class Undeclared(Honest):
        deterministic = False

        def _sample(self, *arguments: Any) -> Tensor:
            raise AssertionError("tried")

    with pytest.raises(ContractError, match=r"\(greedy-fork 6.6\).* declares that it is not. Use a deterministic"):
        loaded(Undeclared, GREEDY)
    with pytest.raises(ContractError, match="declares that it is not"):
        neurogen.load_sampler("topk", temperature=0, require=GREEDY)


def test_sampler_that_raises_is_a_plugin_error() -> None:
    def raises(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
        raise KeyError("weights")

    with pytest.raises(PluginError, match=r"'impostor' \(greedy-fork 6.6\) failed in sample: KeyError: 'weights'"):
        loaded(impostor(raises), GREEDY)


def test_sampler_that_gives_up_on_valid_rows_is_refused() -> None:
    def gives_up(logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
        return torch.full((len(logits),), -1)

    with pytest.raises(ContractError, match=r"greedy-fork 6.6\) kept no token in row"):
        loaded(impostor(gives_up), GREEDY)


@pytest.mark.parametrize("name", ["topk", "topp"])
def test_sampling_at_temperature_0_is_argmax_and_else_is_not(name: str) -> None:
    neurogen.load_sampler(name, temperature=0, require=Contract(argmax=True))
    with pytest.raises(ContractError, match=rf"{name!r} \(neurogen-{name} .*was required to be argmax and is not"):
        neurogen.load_sampler(name, temperature=1, require=Contract(argmax=True))


def test_only_declared_dtypes_are_tried() -> None:
    class Narrow(impostor(wrong_in_bfloat16)):  # type: ignore[misc]
        dtypes = frozenset({"float32", "float16"})

    loaded(Narrow, GREEDY)


def test_stateful_sampler_is_probed_with_a_state() -> None:
    class Remembers(Honest):
        stateful = True

        def new_state(self, batch: int) -> dict[str, Tensor]:
            return {"calls": torch.zeros(batch)}

    loaded(Remembers, GREEDY)


@pytest.mark.parametrize("call", ["sample", "probs", "support"])
@pytest.mark.parametrize(
    ("state", "got"),
    [
        ({}, "got no 'mu'"),
        ([1.0], "got list"),
        ({"mu": 10.0}, "got float"),
        ({"mu": torch.zeros(1, dtype=torch.float64)}, r"got float64 \[1\] on cpu"),
        ({"mu": torch.zeros(9, dtype=torch.float64)}, r"got float64 \[9\] on cpu"),
        ({"mu": torch.zeros(4, 1, dtype=torch.float64)}, r"got float64 \[4, 1\] on cpu"),
        ({"mu": torch.zeros(4, dtype=torch.int64)}, r"got int64 \[4\] on cpu"),
        ({"mu": torch.zeros(4, dtype=torch.float64, device="meta")}, r"got float64 \[4\] on meta"),
    ],
)
def test_a_memory_of_other_rows_never_reaches_a_kernel(call: str, state: Any, got: str) -> None:
    """A row's memory is read by its address: one too few would be read behind the end, integers were rounded to 0."""
    sampler = neurogen.load_sampler("mirostat")
    with pytest.raises(ParameterError, match=rf"remembers 'mu' of each row, float64 \[4\] on cpu; {got}"):
        getattr(sampler, call)(torch.randn(4, 50), state=state)


def test_probing_leaves_torchs_random_state_alone() -> None:
    before = torch.get_rng_state()
    neurogen.load_sampler("greedy", require=GREEDY)
    assert torch.get_rng_state().equal(before)
