"""How samplers and results show themselves in a notebook: small tables and texts as HTML, everything escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from neurogen.contract.parameters import domain_of
from neurogen.pages.page import BASE_CSS

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.text.generation import Result

__all__ = ["result_html", "sampler_html"]


def sampler_html(sampler: Sampler) -> str:
    """A sampler: what it does, where it comes from, and its parameters."""
    cls = type(sampler)
    what = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td><b>{escape(repr(getattr(sampler.params, name)))}</b></td>"
        f"<td>{escape(domain_of(field))}</td><td>{escape(field.description or '')}</td></tr>"
        for name, field in cls.Params.model_fields.items()
    )
    kind = "deterministic" if sampler.deterministic else "draws at random"
    header = "<tr><th>parameter</th><th>value</th><th>domain</th><th></th></tr>" if rows else ""
    return _box(
        f"<h1>{escape(sampler.name)}</h1><p>{escape(what)}</p>"
        f'<p class="note">{escape(sampler.origin)}; {kind}; {", ".join(sampler.backends) or "any device"}</p>'
        f'<div class="card scroll"><table>{header}{rows}</table></div>'
    )


def result_html(result: Result) -> str:
    """A generated text behind its prompt, and how to get it again."""
    params = ", ".join(f"{name}={value!r}" for name, value in result.params.items())
    told = (
        f"{result.sampler}({params}), seed {result.seed}; {result.new_tokens} tokens, "
        f"{result.tokens_per_second:.1f} a second, ended by {result.finish_reason}"
    )
    notices = "".join(f"<p>{escape(notice)}</p>" for notice in result.notices or ())
    return _box(
        f'<div class="card" style="white-space:pre-wrap"><span class="note">{escape(result.prompt)}</span>'
        f'{escape(result.text)}</div>{notices}<p class="note">{escape(told)}</p>'
    )


def _box(body: str) -> str:
    return f'<style>{BASE_CSS}</style><div class="ng"><div>{body}</div></div>'
