"""An explanation as one HTML page: the text coloured by probability, and of each token its candidates, with sliders.

The sliders recompute in the page what temperature, k and p would have kept of the same logits; the script is
`explain.js` with `explain_sliders.js`. Everything a model has written is escaped, in the page and in its data.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurogen.diagnosis.explain import ExplainedStep, Explanation
from neurogen.files import write_text
from neurogen.pages import page as pages

__all__ = ["fragment", "page", "write_page"]

MOST_BYTES = 24_000_000
"""A page holds all logits of every step if they take no more than this; else the largest and a histogram."""

CANDIDATES = 200
"""Number of the largest logits of a step whose texts a page holds."""

TAIL_BINS = 64
"""Bins of the histogram of the other logits."""

SLIDERS = {"topk": "k", "topp": "p", "temperature": None}
"""Sampler -> the slider, beside that of the temperature, that does what it does."""

LINE_BREAK = "<0x0A>"
"""How a SentencePiece vocabulary spells a line break."""


def write_page(explanation: Explanation, path: str | Path) -> None:
    """Write the page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    write_text("The page", path, page(explanation))


def page(explanation: Explanation) -> str:
    """A whole HTML document."""
    return pages.document("explain.html", **_values(explanation))


def fragment(explanation: Explanation) -> str:
    """The same for a notebook, where it must not style anything else."""
    return pages.fragment("explain.html", **_values(explanation))


def _values(explanation: Explanation) -> dict[str, Any]:
    """What the template shows."""
    return {
        "explanation": explanation,
        "result": explanation.result,
        "tokens": [_token(step) for step in explanation.steps],
        "data": _data(explanation),
    }


def _token(step: ExplainedStep) -> dict[str, str]:
    return {
        "text": "\n" if step.text == LINE_BREAK else step.text or "\u2400",
        "css": pages.probability_class(step.probability),
        "hint": f"{100 * step.probability:.3g} %, rank {step.rank:,}",
    }


def _data(explanation: Explanation) -> dict[str, Any]:
    """The steps for the script."""
    own, order = _own_settings(explanation)
    finite = sum(int((step.processed > -torch.inf).sum()) for step in explanation.steps)
    whole = 4 * finite <= MOST_BYTES
    return {
        "own": own,
        "start": own or {"temperature": _number(explanation, "temperature", 1.0), "k": 0, "p": 1.0},
        "order": order,
        "sampler": explanation.result.sampler,
        "steps": [_step(step, explanation.token_text, whole=whole) for step in explanation.steps],
    }


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


def _step(step: ExplainedStep, token_text: Callable[[int], str], *, whole: bool) -> dict[str, Any]:
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
        **_logits(step.processed, token_text, whole=whole),
        "chosen": [step.token_id, step.text, logit],
        "place": _place(step.processed, step.token_id),
        "kept": step.stages[-1].kept if step.stages else None,
    }


def _logits(processed: Tensor, token_text: Callable[[int], str], *, whole: bool) -> dict[str, Any]:
    """The largest logits with their texts, a histogram (count, mean) of the other finite ones, or all as float32."""
    order = torch.argsort(processed, descending=True, stable=True)
    order = order[: int((processed > -torch.inf).sum())]
    values = processed[order]
    largest = zip(order[:CANDIDATES].tolist(), values[:CANDIDATES].double().tolist(), strict=True)
    rest = values[CANDIDATES:].double()
    bins = torch.tensor_split(rest, TAIL_BINS) if len(rest) else ()  # sorted: values of a bin are similar
    return {
        "logits": [(one, token_text(one), value) for one, value in largest],
        "tail": [(len(b), float(b.mean())) for b in bins if len(b)],
        "values": b64encode(values.numpy().astype("<f4").tobytes()).decode("ascii") if whole else None,
    }


def _place(processed: Tensor, token: int) -> int:
    """The place of a token in the order of logits, from 0; at equal logits the lower id is first."""
    return int((processed > processed[token]).sum() + (processed[:token] == processed[token]).sum())
