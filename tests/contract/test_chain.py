"""Chains: truncations from left to right, the last one selects; one temperature, first."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

import neurogen
from neurogen import ParameterError, PluginError, Registry, reference
from neurogen.contract.chain import Chain, chain_class


def logits(rows: int = 16, vocab: int = 500, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3)) * scale


def generic(spec: str, **params: object) -> neurogen.Sampler:
    """The chain made of its links, even where a package offers it as one sampler."""
    registry = neurogen.registry.registry.default_registry()
    links = [registry.load_class(name) for name in spec.split("+")]
    return chain_class(links)(**params)


def test_support_is_that_of_each_sampler_on_what_the_last_one_left() -> None:
    rows = logits()
    chain = neurogen.load_sampler("topk(k=40)+topp(p=0.6)", temperature=1.3)
    for row, kept in zip(rows, chain.support(rows), strict=True):
        first = reference.topk_support(row.numpy(), 40)
        left = row.masked_fill(~torch.from_numpy(first), -torch.inf)
        assert kept.tolist() == reference.topp_support(left.numpy(), 0.6, 1.3).tolist()


def test_the_order_of_samplers_matters() -> None:
    rows = torch.tensor([[3.0, 2.0, 1.0, 0.0]])  # masses 20, 7.4, 2.7, 1: the first is 0.64 of all, 0.73 of two
    assert neurogen.load_sampler("topk(k=2)+topp(p=0.7)", temperature=1.0).support(rows).sum() == 1
    assert neurogen.load_sampler("topp(p=0.7)+topk(k=2)", temperature=1.0).support(rows).sum() == 2


def test_probs_are_renormalised_over_what_all_links_keep() -> None:
    rows = logits()
    chain = generic("topk+topp", k=30, p=0.8, temperature=0.9)
    for row, kept, probs in zip(rows, chain.support(rows), chain.probs(rows), strict=True):
        expected = reference.probs(row.numpy(), kept.numpy(), 0.9)
        assert abs(probs.numpy() - expected).max() < 1e-6


def test_parameters_may_be_given_in_the_name_beside_it_and_per_row() -> None:
    rows = logits(3)
    chain = neurogen.load_sampler("topk(k=40)+topp", p=0.5, temperature=1.0)
    assert chain.params.model_dump() == {"k": 40, "temperature": 1.0, "p": 0.5}
    few = chain.support(rows, k=torch.tensor([1, 2, 3]), p=1.0)
    assert few.sum(-1).tolist() == [1, 2, 3]


def test_at_temperature_zero_a_chain_is_greedy() -> None:
    rows = logits()
    chain = neurogen.load_sampler("topk+topp", temperature=0.0)
    assert chain.sample(rows, seed=4).tolist() == rows.argmax(-1).tolist()


def test_a_chain_that_ends_with_greedy_is_deterministic() -> None:
    chain = neurogen.load_sampler("topk(k=3)+greedy")
    assert chain.deterministic
    assert chain.sample(logits(), seed=1).tolist() == logits().argmax(-1).tolist()


@pytest.mark.parametrize("spec", ["topk+topp", "topp+topk"])
def test_rows_without_a_distribution_do_not_disturb_others(spec: str) -> None:
    rows = logits(4)
    rows[1, 7], rows[2] = torch.nan, -torch.inf
    chain = generic(spec)
    ids = chain.sample(rows, seed=2, check=False).tolist()
    assert ids[1:3] == [-1, -1]
    assert [ids[0], ids[3]] == chain.sample(rows[[0, 3]], seed=2).tolist()
    with pytest.raises(neurogen.InvalidLogitsError):
        chain.sample(rows)


def test_two_temperatures_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"temperature is given as 0.5 and as 0.6. A chain has one temperature"):
        neurogen.load_sampler("topk(temperature=0.5)+topp(temperature=0.6)")
    assert (
        neurogen.load_sampler("topk(temperature=0.5)+topp(temperature=0.5)").params.model_dump()["temperature"] == 0.5
    )


def test_a_value_given_in_the_name_and_beside_it_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"topk: k is given in the name, 5, and beside it, 6. Give it once."):
        neurogen.load_sampler("topk(k=5)", k=6)


def test_a_sampler_stands_in_a_chain_once() -> None:
    with pytest.raises(ParameterError, match="has 'topk' twice"):
        neurogen.load_sampler("topk+topp+topk")


class Hot(neurogen.Sampler):
    """Changes the temperature, so it cannot be followed by another."""

    name = "hot"
    api_version = 1
    truncates = False
    backends = {"cpu": "neurogen_topk.cpu"}

    class Params(neurogen.SamplerParams):
        k: int = neurogen.Param(3, ge=0, description="As topk's.", option="--hot-k")
        temperature: float = neurogen.Param(2.0, ge=0, description="As topk's.")


def test_what_does_more_than_remove_tokens_comes_last() -> None:
    topk = neurogen.registry.registry.default_registry().load_class("topk")
    with pytest.raises(ParameterError, match="the sampler 'hot' cannot stand before another"):
        chain_class([Hot, topk])
    last = chain_class([topk, Hot])
    assert not last.truncates
    assert last().params.model_dump() == {"topk_k": 50, "temperature": 2.0, "hot_k": 3}


def test_parameters_that_share_a_name_keep_their_own_options() -> None:
    topk = neurogen.registry.registry.default_registry().load_class("topk")
    fields = chain_class([topk, Hot]).Params.model_fields
    assert [neurogen.contract.parameters.option_of(name, field) for name, field in fields.items()] == [
        "--top-k",
        "--temperature",
        "--hot-k",
    ]


def test_bounds_of_the_links_hold() -> None:
    with pytest.raises(ParameterError, match=r"p must be a number in \(0, 1\], got 1.5"):
        neurogen.load_sampler("topk+topp(p=1.5)")


def test_an_unknown_link_is_named() -> None:
    with pytest.raises(PluginError, match=r"no sampler 'tpp'.*Did you mean 'topp'"):
        neurogen.load_sampler("topk+tpp")


def test_the_origin_names_every_distribution() -> None:
    assert generic("topk+topp").name == "topk+topp"
    plugin = neurogen.registry.registry.default_registry().find("topk+greedy")
    assert plugin.origin == "neurogen-topk 0.1.0 + neurogen-greedy 0.1.0"


def test_a_chain_that_a_package_offers_as_one_sampler_is_used() -> None:
    class Fused(neurogen.Sampler):
        name = "topk+topp"
        api_version = 1
        backends = {"cpu": "neurogen_topk.cpu"}

        class Params(neurogen.SamplerParams):
            k: int = neurogen.Param(50, ge=0, description="k")
            p: float = neurogen.Param(0.9, gt=0, le=1, description="p")
            temperature: float = neurogen.Param(0.8, ge=0, description="t")

    class Module:
        @neurogen.hookimpl
        def neurogen_samplers(self) -> list[type[neurogen.Sampler]]:
            return [Fused]

    found = importlib.metadata.entry_points(group="neurogen.samplers")
    registry = Registry(entry_points=[entry for entry in found if "+" not in entry.name])
    assert isinstance(registry.load_sampler("topk+topp"), Chain)
    registry.register(Module())
    made = registry.load_sampler("topk(k=3)+topp(p=0.4)", temperature=0.5)
    assert type(made) is Fused
    assert made.params.model_dump() == {"k": 3, "p": 0.4, "temperature": 0.5}
