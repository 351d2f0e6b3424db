"""The stages in which a sampler changes a distribution; the building blocks of every `Sampler.stages`.

Explanations show them, one row at a time. Knows only tensors, no sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["TEMPERATURE", "SamplerStage", "named", "softmax", "tempered", "truncated"]

TEMPERATURE = "temperature"
"""The parameter that has a stage of its own, before the truncations of all samplers of a chain."""


class SamplerStage(NamedTuple):
    """One stage of a sampler.

    Attributes:
        kind: the temperature sharpens or flattens, a truncation removes tokens.
        name: with its parameters, such as "topk(k=50)".
        kept: bool [1, vocab], tokens that can be drawn after it.
        probs: float64 [1, vocab], the distribution after it.
    """

    kind: Literal["temperature", "truncation"]
    name: str
    kept: Tensor
    probs: Tensor


def tempered(logits: Tensor, temperature: float) -> list[SamplerStage]:
    """The stage of a temperature; none for 1, which changes nothing."""
    if temperature == 1.0:
        return []
    probs = softmax(logits, temperature)
    kept = probs > 0 if temperature == 0 else logits > -torch.inf
    return [SamplerStage("temperature", f"temperature {temperature:g}", kept, probs)]


def truncated(name: str, logits: Tensor, temperature: float) -> SamplerStage:
    """The stage of a truncation.

    Args:
        name: with its parameters.
        logits: [1, vocab], -inf for what has been removed.
        temperature: that the distribution has by then.
    """
    return SamplerStage("truncation", name, logits > -torch.inf, softmax(logits, temperature))


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """float64 [1, vocab]; one-hot at temperature 0, zeros where nothing is left."""
    if temperature == 0:
        one_hot = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
        one_hot[0, int(logits[0].argmax())] = 1.0
        return one_hot
    return torch.softmax(logits.double() / temperature, dim=-1).nan_to_num_(0.0)


def named(sampler: str, params: Mapping[str, Any]) -> str:
    """A sampler with all its parameters except the temperature."""
    values = ", ".join(f"{name}={value!r}" for name, value in params.items() if name != TEMPERATURE)
    return f"{sampler}({values})" if values else sampler
