"""What a sampler does to a distribution step by step, as it declares it itself: for explanations, one row at a time.

`Sampler.stages` gives them; this module holds what the stages of all samplers are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from neurogen.errors import NeurogenError

if TYPE_CHECKING:
    from neurogen.contract.chain import Chain
    from neurogen.contract.sampler import Sampler, State

__all__ = ["SamplerStage", "closed", "given", "spelled", "stages_of", "stages_of_chain", "tempered", "truncated"]

SHARED = "temperature"


class SamplerStage(NamedTuple):
    """One stage of a sampler.

    Attributes:
        kind: the temperature sharpens or flattens, a truncation removes tokens.
        name: with its parameters, such as "topk(k=50)".
        kept: bool [1, vocab], tokens that can be drawn behind it.
        probs: float64 [1, vocab], the distribution behind it.
    """

    kind: Literal["temperature", "truncation"]
    name: str
    kept: Tensor
    probs: Tensor


def stages_of(sampler: Sampler, logits: Tensor, state: State | None, params: Mapping[str, Any]) -> list[SamplerStage]:
    """The temperature, if there is one but 1, and then all that the sampler removes.

    Args:
        sampler: one whose truncation is one stage, or one that offers a chain by its name, such as "topk+topp".
        logits: [1, vocab], valid.
        state: of a sampler with memory, before the token.
        params: those of this call.
    """
    values = {**sampler.params.model_dump(), **params}
    if (chain := _as_chain(sampler, values)) is not None:
        return closed(chain.stages(logits), sampler, logits, state, params)
    name = spelled(sampler, values)
    found = [*tempered(logits, values.get(SHARED, 1.0)), SamplerStage("truncation", name, logits, logits)]
    return closed(found, sampler, logits, state, params)


def stages_of_chain(
    chain: Chain, logits: Tensor, seed: int, position: int, state: State | None, params: Mapping[str, Any]
) -> list[SamplerStage]:
    """The temperature once, then each sampler of a chain on what the last one left."""
    values = {**chain.params.model_dump(), **params}
    temperature = values.get(SHARED, 1.0)
    found, left = tempered(logits, temperature), logits
    *links, (last, shared) = chain.parts()
    for link, names in links:
        own = given(link, {name: values[other] for name, other in names.items()})
        kept = link.support(left, **own) & (left > -torch.inf)
        left = left.masked_fill(~kept, -torch.inf)
        found.append(truncated(spelled(link, {**link.params.model_dump(), **own}), left, temperature))
    own = given(last, {name: values[other] for name, other in shared.items()})
    rest = last.stages(left, seed=seed, position=position, state=state, **own)
    found += rest[1:] if rest[0].kind == "temperature" else rest
    return closed(found, chain, logits, state, params) if last.truncates else found


def closed(
    stages: list[SamplerStage], sampler: Sampler, logits: Tensor, state: State | None, params: Mapping[str, Any]
) -> list[SamplerStage]:
    """The stages, the last with what the sampler itself says of what is kept and drawn from."""
    *most, last = stages
    memory: dict[str, Any] = {} if state is None else {"state": state}
    kept = sampler.support(logits, **memory, **given(sampler, params))
    probs = sampler.probs(logits, **memory, **given(sampler, params)).double()
    return [*most, last._replace(kept=kept, probs=probs)]


def tempered(logits: Tensor, temperature: float) -> list[SamplerStage]:
    """The stage of a temperature; none for 1, which changes nothing."""
    if temperature == 1.0:
        return []
    probs = softmax(logits, temperature)
    kept = probs > 0 if temperature == 0 else logits > -torch.inf
    return [SamplerStage("temperature", f"temperature {temperature:g}", kept, probs)]


def truncated(name: str, left: Tensor, temperature: float) -> SamplerStage:
    """The stage of a truncation.

    Args:
        name: with its parameters.
        left: logits [1, vocab], -inf for what has been removed.
        temperature: that the distribution has by then.
    """
    return SamplerStage("truncation", name, left > -torch.inf, softmax(left, temperature))


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """float64 [1, vocab]; one-hot at temperature 0, zeros where nothing is left."""
    if temperature == 0:
        one_hot = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
        one_hot[0, int(logits[0].argmax())] = 1.0
        return one_hot
    return torch.softmax(logits.double() / temperature, dim=-1).nan_to_num_(0.0)


def given(sampler: Sampler, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for one call: those that are not the sampler's own already."""
    own = sampler.params.model_dump()
    return {name: value for name, value in params.items() if own[name] != value}


def spelled(sampler: Sampler, params: Mapping[str, Any]) -> str:
    """A sampler with its parameters but the temperature, which is a stage of its own."""
    values = ", ".join(f"{name}={value!r}" for name, value in params.items() if name != SHARED)
    return f"{sampler.name}({values})" if values else sampler.name


def _as_chain(sampler: Sampler, values: Mapping[str, Any]) -> Sampler | None:
    """The chain of installed samplers that one sampler offers as a whole, with a kernel of its own."""
    from neurogen.contract.chain import chain_class
    from neurogen.registry.registry import default_registry

    if "+" not in sampler.name:
        return None
    try:
        return chain_class([default_registry().load_class(name) for name in sampler.name.split("+")])(**values)
    except NeurogenError:  # its parts are not installed, or have other parameters: it is shown as one
        return None
