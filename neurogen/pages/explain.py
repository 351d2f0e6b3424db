"""An explanation as one HTML page: the text coloured by probability, and of each token its candidates, with sliders.

The sliders recompute in the page what temperature, k and p would have kept of the same logits; the script is
`explain_page.js` with `explain_sliders.js`. Everything a model has written is escaped, in the page and in its data.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.files import to_json
from neurogen.pages import page as pages

if TYPE_CHECKING:
    from neurogen.diagnosis.explanation import ExplainedStep, Explanation

__all__ = ["fragment", "page", "write_page"]

MOST_BYTES = 24_000_000
"""A page holds all logits of every step if they take no more than this; else the largest and a histogram."""

SLIDERS = {"topk": "k", "topp": "p", "temperature": None}
"""Sampler -> the slider, beside that of the temperature, that does what it does."""

LINE_BREAK = "<0x0A>"
"""How a SentencePiece vocabulary spells it."""

CSS = """
.ng .text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9}
.ng .text .prompt{color:var(--muted)}
.ng .text button{border:0;padding:0;margin:0;font:inherit;color:inherit;cursor:pointer;border-radius:2px;
white-space:pre-wrap;display:inline;text-align:left}.ng .text .p0{background:none}
.ng .text button:hover,.ng .text button:focus-visible{outline:2px solid var(--c1)}
.ng .text button[aria-pressed=true]{outline:2px solid var(--c2)}
.ng .sliders{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:.4rem 1.4rem}
.ng .sliders label{display:block;font-size:.85rem;color:var(--muted)}
.ng .sliders output{color:var(--ink);font-weight:650;float:right}
.ng .sliders input{width:100%}
.ng .tape{height:1.4rem;border:1px solid var(--line);border-radius:4px;position:relative;margin:.5rem 0;overflow:hidden}
.ng .tape i{position:absolute;top:0;bottom:0;background:var(--c1);opacity:.55;min-width:2px}
.ng .tape b{position:absolute;top:0;bottom:0;width:2px;background:var(--c2)}
.ng td.bar{width:30%;min-width:110px}.ng td.bar i{display:block;height:.75rem;border-radius:3px;background:var(--c1);
min-width:1px}
.ng td.bar i+i{background:var(--c3);margin-top:2px}
.ng tr.gone td{color:var(--muted)}.ng tr.gone td:nth-child(2){text-decoration:line-through}
.ng tr.chosen td{font-weight:650}
.ng .swatch{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;margin:0 .3rem 0 .8rem;background:var(--c1)}
.ng .swatch.now{background:var(--c3)}
.ng td.token{white-space:pre;font-family:ui-monospace,monospace;max-width:22rem;overflow:hidden;text-overflow:ellipsis}
"""


def write_page(explanation: Explanation, path: str | Path) -> None:
    """Write the page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    pages.write_page(path, lambda: page(explanation))


def page(explanation: Explanation) -> str:
    """A whole HTML document."""
    return pages.document(f"Why these tokens? {explanation.sampler}", CSS, _body(explanation))


def fragment(explanation: Explanation) -> str:
    """The same for a notebook, where it must not style anything else."""
    return f'<style>{pages.BASE_CSS}{CSS}</style><div class="ng">{_body(explanation)}</div>'


def _body(explanation: Explanation) -> str:
    result = explanation.result
    tokens = "".join(_token(index, step) for index, step in enumerate(explanation.steps))
    key = "".join(
        f'<span class="{css}">{label}</span>'
        for (_, css), label in zip(pages.PROBABILITY_STEPS, pages.STEP_LABELS, strict=True)
    )
    processors = "".join(f"{escape(one)}, " for one in result.processors or ())
    notices = "".join(f"<p>{escape(notice)}</p>" for notice in result.notices or ())
    return (
        '<div class="ng-explain"><h1>Why these tokens?</h1>'
        f'<p class="note">{escape(explanation.model)}, {processors}{escape(explanation.sampler)}, seed {result.seed}; '
        f"{len(explanation.steps)} tokens of {explanation.vocab_size:,}, ended by {result.finish_reason}.</p>{notices}"
        f'<p class="note key">The model gave the token chosen: {key}</p>'
        f'<div class="card text"><span class="prompt">{escape(result.prompt)}</span>{tokens}</div>'
        '<div class="detail" aria-live="polite"><p class="note">Click a token to see its candidates.</p></div>'
        f'<script type="application/json" class="data">{_data(explanation)}</script>'
        f"<script>(() => {{\n{_script('explain_sliders.js')}\n{_script('explain_page.js')}}})();</script></div>"
    )


def _script(name: str) -> str:
    return resources.files("neurogen.pages").joinpath(name).read_text(encoding="utf-8")


def _token(index: int, step: ExplainedStep) -> str:
    text = "\n" if step.text == LINE_BREAK else step.text or "\u2400"
    hint = f"{100 * step.probability:.3g} %, rank {step.rank:,}"
    return (
        f'<button class="{pages.probability_class(step.probability)}" data-step="{index}" aria-pressed="false" '
        f'title="{escape(hint)}">{escape(text)}</button>'
    )


def _data(explanation: Explanation) -> str:
    """The steps for the script; without a < no text of a model can end the element that holds it."""
    own, order = _own_settings(explanation)
    whole = sum(len(step.sorted_logits) for step in explanation.steps) <= MOST_BYTES
    values = {
        "own": own,
        "start": own or {"temperature": _number(explanation, "temperature", 1.0), "k": 0, "p": 1.0},
        "order": order,
        "sampler": explanation.result.sampler,
        "steps": [_step(step, whole=whole) for step in explanation.steps],
    }
    return to_json(values).replace("<", "\\u003c")


def _own_settings(explanation: Explanation) -> tuple[dict[str, Any] | None, list[str]]:
    """Where the sliders stand for what the run did, and the order of truncations; None where they cannot."""
    links = explanation.result.sampler.split("+")
    if links == ["greedy"]:
        return {"temperature": 0, "k": 0, "p": 1.0}, ["k", "p"]
    if not all(link in SLIDERS for link in links):
        return None, ["k", "p"]
    own = {"temperature": _number(explanation, "temperature", 1.0), "k": 0, "p": 1.0}
    own |= {name: _number(explanation, name, own[name]) for link in links if (name := SLIDERS[link]) is not None}
    order = [name for link in links if (name := SLIDERS[link]) is not None]
    return own, order if len(order) > 1 else ["k", "p"]


def _number(explanation: Explanation, name: str, other: float) -> float:
    """A parameter of the sequence, whose prompt may have had its own."""
    value = {**explanation.params, **explanation.result.params}.get(name, other)
    return value if isinstance(value, int | float) else other


def _step(step: ExplainedStep, *, whole: bool) -> dict[str, Any]:
    logit = next((one.processed for one in step.candidates if one.token_id == step.token_id), None)
    removed = {one.token_id: one.removed_by for one in step.candidates if one.removed_by}
    drawn = {one.token_id: one.drawn for one in step.candidates}
    return {
        "position": step.position,
        "id": step.token_id,
        "text": step.text,
        "p": step.probability,
        "rank": step.rank,
        "drawn": step.drawn,
        "entropy": step.entropy,
        "random": step.random,
        "interval": step.interval,
        "stages": [[one.kind, one.name, one.kept, one.mass, one.entropy] for one in step.stages],
        "removed": removed,
        "drawnOf": drawn,
        "logits": step.logits,
        "chosen": [step.token_id, step.text, logit],
        "place": step.place,
        "kept": step.stages[-1].kept if step.stages else None,
        "tail": step.tail,
        "values": b64encode(step.sorted_logits).decode("ascii") if whole else None,
    }
