"""A comparison as one HTML page: measures with intervals, plots, and the texts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurogen.diagnosis.compare import Comparison, Estimate, Outcome
from neurogen.files import write_text
from neurogen.pages import page as pages
from neurogen.pages.charts import Axis, Figure, Plot, round_values

__all__ = ["fragment", "page", "write_page"]

PLOTTED = ("perplexity", "agreement", "distinct_2", "repetition", "self_bleu", "accuracy")
LONGEST_LABEL = 34
LETTER = 5.8
ROW_HEIGHT = 24
TICKS = 7


def write_page(comparison: Comparison, path: str | Path) -> None:
    """Write the page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    write_text("The page", path, page(comparison))


def page(comparison: Comparison) -> str:
    """A whole HTML document."""
    return pages.document("compare.html", **_values(comparison))


def fragment(comparison: Comparison) -> str:
    """The same for a notebook, where it must not style anything else."""
    return pages.fragment("compare.html", **_values(comparison))


def _values(comparison: Comparison) -> dict[str, Any]:
    """What the template shows."""
    metrics = comparison.metrics()
    rated = [one for one in comparison.outcomes if {"perplexity", "distinct_2"} <= one.measures.keys()]
    figures = [_quality_chart(rated)] if rated else []
    for name in PLOTTED:
        if name in metrics:
            figures.append(_metric_chart([one for one in comparison.outcomes if name in one.measures], name))
    return {"comparison": comparison, "options": comparison.options, "metrics": metrics, "figures": figures}


def _quality_chart(outcomes: Sequence[Outcome]) -> Figure:
    """Quality against diversity: perplexity under the model over distinct pairs; a sweep becomes a line."""
    diversity, quality = ([one.measures[name] for one in outcomes] for name in ("distinct_2", "perplexity"))
    x = _axis(diversity, "distinct pairs (diversity)")
    plot = Plot(x, _axis(quality, "perplexity under the model"), "Perplexity over distinct pairs")
    points = [(d.value, q.value) for d, q in zip(diversity, quality, strict=True)]
    for name in dict.fromkeys(map(_name, outcomes)):
        plot.line([at for at, one in zip(points, outcomes, strict=True) if _name(one) == name], "peers line1")
    for (right, up), d, q, label in zip(points, diversity, quality, _labels(outcomes), strict=True):
        plot.line([(end, up) for end in _ends(d)], "peers line1")
        plot.line([(right, end) for end in _ends(q)], "peers line1")
        plot.dot(right, up, f"{label}: distinct pairs {d}, perplexity {q}", radius=4)
        plot.text(right, up, label, "start" if x.share(right) < 0.6 else "end", "name")
    return Figure("Quality against diversity", "", plot.svg())


def _metric_chart(outcomes: Sequence[Outcome], name: str) -> Figure:
    """A bar for each sampler, the first on top, with its interval."""
    estimates, labels = [one.measures[name] for one in outcomes], _labels(outcomes)
    most = max(end for estimate in estimates for end in _ends(estimate))
    places = range(len(outcomes) - 1, -1, -1)
    title = name.replace("_", " ")
    x = Axis(0, most * 1.05 or 1, [(value, f"{value:g}") for value in round_values(0, most, TICKS)], "", grid=True)
    y = Axis(0, len(outcomes), [(place + 0.5, label) for place, label in zip(places, labels, strict=True)], "")
    height = 70 + ROW_HEIGHT * len(outcomes)
    plot = Plot(x, y, f"{title} by sampler", height=height, left=20 + LETTER * max(map(len, labels)))
    for place, label, estimate in zip(places, labels, estimates, strict=True):
        if estimate.value:
            plot.row(place, place + 1, estimate.value, f"{label}: {estimate}")
        plot.line([(end, place + 0.5) for end in _ends(estimate)], "interval")
    return Figure(title, "", plot.svg())


def _axis(estimates: Sequence[Estimate], title: str) -> Axis:
    """An axis around all estimates and their intervals."""
    ends = [end for estimate in estimates for end in _ends(estimate)]
    margin = 0.2 * (max(ends) - min(ends)) or 0.2 * abs(max(ends)) or 1.0
    low, high = min(ends) - margin, max(ends) + margin
    return Axis(low, high, [(value, f"{value:g}") for value in round_values(low, high, TICKS)], title, grid=True)


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The interval, or twice the value if there is no interval."""
    if estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _name(outcome: Outcome) -> str:
    return outcome.label.partition("(")[0]


def _labels(outcomes: Sequence[Outcome]) -> list[str]:
    """Short names: parameters that all outcomes of a sampler share are left out."""
    params = [outcome.label.partition("(")[2].removesuffix(")").split(", ") for outcome in outcomes]
    labels = []
    for outcome, own in zip(outcomes, params, strict=True):
        alike = [other for one, other in zip(outcomes, params, strict=True) if _name(one) == _name(outcome)]
        params_shown = [pair for pair in own if pair and (len(alike) > 1) and not all(pair in other for other in alike)]
        label = f"{_name(outcome)} {', '.join(params_shown)}".strip()
        labels.append(label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "\u2026")
    return labels
