"""A comparison as one HTML page: measures with intervals, plots, and the texts side by side."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.diagnosis.compare import METRICS
from neurogen.pages import page as pages

if TYPE_CHECKING:
    from neurogen.diagnosis.compare import Comparison, Estimate, Outcome, Sample

__all__ = ["fragment", "page", "shown", "write_page"]

CSS = """
.ng .side{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(230px,1fr);gap:.8rem;overflow-x:auto}
.ng .side div{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.ng .side b{display:block;white-space:normal;font-size:.85rem;color:var(--muted);margin-bottom:.3rem}
.ng .plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr));gap:.8rem}
.ng .plots figure{margin:0;background:#fff}.ng .plots svg{width:100%;height:auto;display:block}
.ng td.of{color:var(--muted)}
"""
PLOTTED = ("perplexity", "agreement", "distinct_2", "repetition", "self_bleu", "accuracy")
COLOR = "#2f6fde"
LONGEST_LABEL = 34


def write_page(comparison: Comparison, path: str | Path) -> None:
    """Write the page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    pages.write_page(path, lambda: page(comparison))


def page(comparison: Comparison) -> str:
    """A whole HTML document."""
    return pages.document(f"{len(comparison.outcomes)} samplers on {comparison.model}", CSS, _body(comparison))


def fragment(comparison: Comparison) -> str:
    """The same for a notebook, where it must not style anything else."""
    return f'<style>{pages.BASE_CSS}{CSS}</style><div class="ng">{_body(comparison)}</div>'


def shown(estimate: Estimate | None) -> str:
    """A measure with its interval, for tables."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def measured(comparison: Comparison) -> list[str]:
    """The measures that any sampler has, in their order."""
    return [name for name in METRICS if any(name in outcome.measures for outcome in comparison.outcomes)]


def _body(comparison: Comparison) -> str:
    options = comparison.options
    most = options["max_new_tokens"] or options["default_new_tokens"]
    return (
        f"<div><h1>{len(comparison.outcomes)} samplers on {escape(comparison.model)}</h1>"
        f'<p class="note">{len(comparison.prompts)} prompts, {options["n"]} samples each, at most '
        f"{most} tokens, seed {options['seed']}. In brackets 95 % bootstrap intervals over "
        "prompts.</p>"
        f"{_table(comparison)}{_plots(comparison)}{_texts(comparison)}</div>"
    )


def _table(comparison: Comparison) -> str:
    names = measured(comparison)
    header = "".join(f"<th>{escape(outcome.label)}</th>" for outcome in comparison.outcomes)
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td>"
        + "".join(f"<td>{shown(outcome.measures.get(name))}</td>" for outcome in comparison.outcomes)
        + f'<td class="of">{escape(METRICS[name])}</td></tr>'
        for name in names
    )
    speed = "".join(f"<td>{outcome.tokens_per_second:.0f}</td>" for outcome in comparison.outcomes)
    return (
        f'<div class="card scroll"><table><tr><th></th>{header}<th></th></tr>{rows}'
        f'<tr><td>tokens a second</td>{speed}<td class="of">of all sequences together</td></tr></table></div>'
    )


def _plots(comparison: Comparison) -> str:
    figures = [_quality(comparison)]
    figures += [_bars(comparison, name) for name in PLOTTED if name in measured(comparison)]
    drawn = "".join(f'<figure class="card">{figure}</figure>' for figure in figures if figure)
    return f'<h2>Plots</h2><div class="plots">{drawn}</div>'


def _quality(comparison: Comparison) -> str:
    """Quality against diversity: perplexity under the model over distinct pairs; a sweep becomes a line."""
    points = [one for one in comparison.outcomes if {"perplexity", "distinct_2"} <= one.measures.keys()]
    if not points:
        return ""
    figure, axes = _figure(4.4, 3.4)
    x, y = ([one.measures[name].value for one in points] for name in ("distinct_2", "perplexity"))
    errors = {"xerr": _errors(points, "distinct_2"), "yerr": _errors(points, "perplexity")}
    axes.errorbar(x, y, **errors, fmt="o", color=COLOR, elinewidth=0.8)
    for name in {_name(one) for one in points}:
        line = [i for i, one in enumerate(points) if _name(one) == name]
        axes.plot([x[i] for i in line], [y[i] for i in line], color=COLOR, alpha=0.35)
    labels = _labels(points)
    for label, at in zip(labels, zip(x, y, strict=True), strict=True):
        axes.annotate(label, at, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.margins(x=0.2)
    axes.set_xlabel("distinct pairs (diversity)")
    axes.set_ylabel("perplexity under the model")
    axes.set_title("Quality against diversity", fontsize=10)
    return _svg(figure)


def _bars(comparison: Comparison, name: str) -> str:
    outcomes = [one for one in comparison.outcomes if name in one.measures]
    figure, axes = _figure(4.4, 1.1 + 0.3 * len(outcomes))
    places = list(range(len(outcomes)))[::-1]
    values = [one.measures[name].value for one in outcomes]
    axes.barh(places, values, color=COLOR, alpha=0.6)
    axes.errorbar(values, places, xerr=_errors(outcomes, name), fmt="none", ecolor="#1b1f24", elinewidth=1)
    axes.set_yticks(places, _labels(outcomes), fontsize=7)
    axes.set_title(name.replace("_", " "), fontsize=10)
    return _svg(figure)


def _errors(outcomes: list[Outcome], name: str) -> list[list[float]]:
    """Distances of the intervals' ends, as matplotlib takes them; 0 where there is none."""
    estimates = [one.measures[name] for one in outcomes]
    below = [max(0.0, e.value - e.low) if e.low is not None else 0.0 for e in estimates]
    above = [max(0.0, e.high - e.value) if e.high is not None else 0.0 for e in estimates]
    return [below, above]


def _name(outcome: Outcome) -> str:
    return outcome.label.partition("(")[0]


def _labels(outcomes: list[Outcome]) -> list[str]:
    """Short names: parameters that all outcomes of a sampler share are left out."""
    params = [outcome.label.partition("(")[2].removesuffix(")").split(", ") for outcome in outcomes]
    labels = []
    for outcome, own in zip(outcomes, params, strict=True):
        alike = [other for one, other in zip(outcomes, params, strict=True) if _name(one) == _name(outcome)]
        told = [pair for pair in own if pair and (len(alike) > 1) and not all(pair in other for other in alike)]
        label = f"{_name(outcome)} {', '.join(told)}".strip()
        labels.append(label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "\u2026")
    return labels


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an SVG element, without anything that points elsewhere."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _texts(comparison: Comparison) -> str:
    sections = []
    for index, prompt in enumerate(comparison.prompts):
        cells = "".join(_cell(outcome, index) for outcome in comparison.outcomes)
        sections.append(f'<p class="note">{escape(prompt)}</p><div class="side">{cells}</div>')
    return f"<h2>Texts side by side</h2>{''.join(sections)}"


def _text(sample: Sample) -> str:
    notices = "".join(f'<p class="note">{escape(notice)}</p>' for notice in sample.notices or ())
    return (escape(sample.text.strip()) or "\u2400") + notices


def _cell(outcome: Outcome, index: int) -> str:
    shown = [_text(sample) for sample in outcome.samples if sample.index == index]
    failed = [error for prompt, _, error in outcome.failures if prompt == index]
    body = "<hr>".join(shown + [f'<span class="note">{escape(error)}</span>' for error in failed])
    return f'<div class="card"><b>{escape(outcome.label)}</b>{body}</div>'
