"""A sampler's truncation, as the numbers that its peers need. Knows the common rules of truncation, but no plugin."""

from __future__ import annotations

from dataclasses import dataclass

from neurogen.contract.sampler import Sampler

__all__ = ["Rule", "rule_of"]

KNOWN = {"greedy": (), "topk": ("k",), "topp": ("p",), "minp": ("min_p",)}
"""Name of a sampler -> the parameters that tell its peers what to do. At most one truncation each."""


@dataclass(frozen=True)
class Rule:
    """Temperature, then one truncation, then a draw.

    Attributes:
        temperature: 0 is the argmax.
        k, p, min_p: the truncation; 0, 1 and 0 keep all.
        exact: the sampler is known to do just this. Of an unknown sampler only the temperature is.
    """

    temperature: float
    k: int = 0
    p: float = 1.0
    min_p: float = 0.0
    exact: bool = True


def rule_of(sampler: Sampler) -> Rule:
    """The rule of a known sampler with its parameters, or the temperature of an unknown one."""
    values = sampler.params.model_dump()
    temperature = values.get("temperature")
    temperature = float(temperature) if isinstance(temperature, int | float) else 1.0
    names = KNOWN.get(sampler.name)
    if names is None or any(name not in values for name in names):
        return Rule(temperature, exact=False)
    if sampler.name == "greedy":
        return Rule(0.0)
    return Rule(temperature, **{name: values[name] for name in names})
