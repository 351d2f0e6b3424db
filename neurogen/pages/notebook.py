"""How samplers and results show themselves in a notebook: small tables and texts."""

from __future__ import annotations

from neurogen.contract.parameters import domain_of
from neurogen.contract.sampler import Sampler
from neurogen.pages.page import fragment
from neurogen.text.generation import Result

__all__ = ["result_html", "sampler_html"]


def sampler_html(sampler: Sampler) -> str:
    """A sampler: what it does, where it comes from, and its parameters."""
    description = " ".join((type(sampler).__doc__ or "").strip().split("\n\n")[0].split())
    parameters = [
        (name, repr(getattr(sampler.params, name)), domain_of(field), field.description or "")
        for name, field in type(sampler).Params.model_fields.items()
    ]
    return fragment("sampler.html", sampler=sampler, description=description, parameters=parameters)


def result_html(result: Result) -> str:
    """A prompt with the text generated after it, and how to generate it again."""
    params = ", ".join(f"{name}={value!r}" for name, value in result.params.items())
    return fragment("result.html", result=result, params=params)
