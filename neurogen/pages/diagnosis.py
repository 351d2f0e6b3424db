"""A diagnosis as one small HTML page without scripts and without anything from elsewhere; light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from neurogen.diagnosis.verdict import Verdict, percent
from neurogen.pages import page as pages
from neurogen.pages.diagnosis_charts import confidence_chart, position_chart, rank_chart, share_chart, weights_chart

if TYPE_CHECKING:
    from neurogen.diagnosis.diagnose import Diagnosis, Token

__all__ = ["fragment", "page", "write_page"]

TONES: dict[Verdict, str] = {
    "healthy": "good",
    "undertrained": "warn",
    "flat": "bad",
    "saturated": "bad",
    "worse than uniform": "bad",
    "diverged": "bad",
    "broken": "bad",
}
MEASURED_ON = {"logits": "raw logits", "probabilities": "the logarithms of probabilities"}
CSS = """
.ng ul{margin:.3rem 0;padding-left:1.2rem}.ng .next b{display:block;margin-top:.6rem}
.ng .charts{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
.ng .charts figure{margin:0}.ng figure b{display:block;color:var(--ink)}
.ng svg{display:block;width:100%;max-width:560px;height:auto;margin-top:.5rem}
.ng td.meter{width:38%;min-width:150px}.ng td.meter i{display:block;height:.8rem;border-radius:3px;background:var(--c4);
min-width:1px}.ng tr.right td.meter i{background:var(--c1)}.ng tr.mistake td.meter i{background:var(--c2)}
.ng .tick{fill:var(--muted);font:11px system-ui,sans-serif}.ng .grid{stroke:var(--line)}.ng .base{stroke:var(--muted)}
.ng svg path{fill:none}.ng .ideal{stroke:var(--muted);stroke-dasharray:4 4}
.ng .fill1{fill:var(--c1)}.ng .fill2{fill:var(--c2)}.ng .fill3{fill:var(--c3)}.ng .fill4{fill:var(--c4)}
.ng .line1{stroke:var(--c1);stroke-width:1.8}.ng .line2{stroke:var(--c2);stroke-width:1.8}
.ng .line3{stroke:var(--c3)}.ng .line4{stroke:var(--c4)}.ng .peers{stroke-width:1;opacity:.45}
.ng .flagged{fill:var(--card);stroke:var(--bad);stroke-width:2.4}
.ng .doc{position:relative;white-space:pre-wrap;overflow-wrap:anywhere;padding-top:4.4rem;line-height:1.75}
.ng .doc:before,.ng .doc span:hover:after{position:absolute;top:.8rem;left:1.2rem;right:1.2rem;font-size:.85rem;
line-height:1.45;white-space:pre-wrap}
.ng .doc:before{content:"Point at a token to see its probability and what the model would have said.";
color:var(--muted)}.ng .doc:has(span:hover):before{content:""}
.ng .doc span:hover:after{content:attr(data-t);color:var(--ink)}.ng .doc span:hover{outline:2px solid var(--c1)}
.ng .doc span{border-radius:2px}
"""


def write_page(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    pages.write_page(path, lambda: page(diagnosis))


def page(diagnosis: Diagnosis) -> str:
    """A whole HTML document."""
    return pages.document(f"{diagnosis.source}: {diagnosis.verdict}", CSS, _body(diagnosis))


def fragment(diagnosis: Diagnosis) -> str:
    """The same for a notebook, where it must not style anything else."""
    return f'<style>{pages.BASE_CSS}{CSS}</style><div class="ng">{_body(diagnosis)}</div>'


def _body(diagnosis: Diagnosis) -> str:
    sections = [_head(diagnosis), _tiles(diagnosis), _accuracy(diagnosis), _charts(diagnosis), _document(diagnosis)]
    body = f"<div>{''.join(sections)}{_details(diagnosis)}</div>"
    return body.replace(" %", "\u00a0%")  # no line ends between a number and its sign


def _head(diagnosis: Diagnosis) -> str:
    measures = diagnosis.measures
    tone = TONES[diagnosis.verdict]
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in diagnosis.reasons)
    steps = "".join(f"<li>{escape(step)}</li>" for step in diagnosis.next_steps)
    return (
        f'<h1>{escape(diagnosis.source)} <span class="pill {tone}">{diagnosis.verdict}</span></h1>'
        f'<p class="note">{len(measures):,} positions, {measures.vocab_size:,} tokens in the vocabulary; measured on '
        f"{MEASURED_ON[measures.kind]}, before temperature and truncation.</p>"
        f'<div class="card">{reasons}<div class="next"><b>What to do</b><ul>{steps}</ul></div></div>'
    )


def _tiles(diagnosis: Diagnosis) -> str:
    health = diagnosis.health
    uniform = math.log(health.vocab_size)
    tiles = (
        ("loss", f"{health.loss:.2f} nats", f"unigram {diagnosis.unigram_loss:.2f}, uniform {uniform:.2f}"),
        ("greedy accuracy", percent(health.accuracy), f"among the first five {percent(health.top5_accuracy)}"),
        ("entropy", f"{health.entropy:.2f} nats", f"{percent(health.entropy_share)} of a uniform guess"),
        ("top-1 probability", percent(health.top1_probability), f"a uniform guess {percent(1 / health.vocab_size)}"),
        ("calibration error", percent(diagnosis.calibration_error()), "mean gap of confidence and accuracy"),
    )
    if not health.positions:
        return ""
    cards = (
        f'<div class="card"><small>{name}</small><b>{value}</b><small>{note}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{"".join(cards)}</div>'


def _accuracy(diagnosis: Diagnosis) -> str:
    scores = diagnosis.accuracies
    if not scores:
        return ""
    most = max(score.accuracy for score in scores) or 1.0
    rows = []
    for score in scores:
        temperature = score.setting.params.get("temperature")
        kind = "right" if temperature is None else "mistake" if temperature == 1 else "inference"
        cells = (
            escape(score.setting.label),
            "-" if temperature is None else f"{temperature:.1f}",
            escape(score.setting.role),
            percent(score.accuracy),
        )
        drawn = ["-"] * 2 if temperature is None else [f"± {percent(score.deviation)}", percent(score.never)]
        rows.append(
            f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}'
            f'<td class="meter">{_meter(score.accuracy / most)}</td>'
            f"{''.join(f'<td>{cell}</td>' for cell in drawn)}</tr>"
        )
    titles = ("sampler", "temperature", "use", "accuracy", "", "one drawing", "never right")
    header = "".join(f"<th>{title}</th>" for title in titles)
    return (
        "<h2>What each sampler would have reported as accuracy</h2>"
        '<p class="note">The same logits, the same positions, computed and not drawn: the probability with which each '
        "chooses the right token. One drawing a position scatters by the given standard deviation; at the last "
        "column's share of positions the right token cannot be chosen at all. Bars are relative to the longest.</p>"
        f'<div class="card scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>'
    )


def _meter(share: float) -> str:
    return f'<i style="width:{100 * share:.2f}%"></i>' if share else ""


def _charts(diagnosis: Diagnosis) -> str:
    measures = diagnosis.measures
    valid = measures.valid
    figures = []
    if valid.any():
        figures += [
            _figure(
                "Entropy",
                "1 is a uniform guess, 0 certainty. A flat model stands at the right end, a saturated one at the left.",
                share_chart(measures.entropy_share[valid], "entropy over log(vocabulary)"),
            ),
            _figure(
                "Confidence",
                "A healthy model is certain at some positions and unsure at others.",
                share_chart(measures.top1[valid], "probability of the top token"),
            ),
            _figure(
                "Where the right token stands",
                "Learning moves it to the left, long before accuracy shows anything.",
                rank_chart(measures.rank[valid], measures.vocab_size),
            ),
            _figure(
                "Is confidence earned?",
                "On the dashed line the model is right as often as it expects; the larger the dot, the more positions.",
                confidence_chart(diagnosis.confidence()),
            ),
        ]
    placed = valid & (measures.positions >= 0) & (measures.loss < math.inf)
    if placed.any():
        chart = position_chart(
            measures.positions[placed],
            measures.entropy[placed],
            measures.loss[placed],
            math.log(measures.vocab_size),
        )
        figures.append(_figure("Along the context", "Both fall where the model uses what it has read.", chart))
    if diagnosis.weights:
        note = "Peers lie close together. Rings mark what is dead, exploded or not finite."
        figures.append(_figure("Weights", note, weights_chart(diagnosis.weights)))
    return f'<h2>Distributions</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _figure(title: str, note: str, chart: str) -> str:
    return f'<figure class="card"><figcaption><b>{title}</b>{note}</figcaption>{chart}</figure>'


def _document(diagnosis: Diagnosis) -> str:
    if not diagnosis.document:
        return ""
    tokens = "".join(_token(diagnosis, token) for token in diagnosis.document)
    labels = zip(pages.PROBABILITY_STEPS, pages.STEP_LABELS, strict=True)
    key = "".join(f'<span class="{css}">{label}</span>' for (_, css), label in labels)
    count = len(diagnosis.document)
    return (
        "<h2>The first text, token by token</h2>"
        f'<p class="note key">Its first {count} tokens. The right token had: {key}</p>'
        f'<div class="card doc">{tokens}</div>'
    )


def _token(diagnosis: Diagnosis, token: Token) -> str:
    if token.position is None or not diagnosis.measures.valid[token.position]:
        return f"<span data-t={_attribute([_quoted(token.text), 'not measured'])}>{escape(token.text)}</span>"
    measures, at = diagnosis.measures, token.position
    probability = float(measures.target_probability[at])
    css = pages.probability_class(probability)
    lines = [
        f"{_quoted(token.text)}: {percent(probability)}, rank {measures.rank[at]:,.0f} of {measures.vocab_size:,}; "
        f"entropy {measures.entropy[at]:.2f} nats",
        f"the model's choice: {_quoted(token.best)}, {percent(float(measures.top1[at]))}",
    ]
    return f'<span class="{css}" data-t={_attribute(lines)}>{escape(token.text)}</span>'


def _quoted(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'


def _attribute(lines: Iterable[str]) -> str:
    return '"' + escape("\n".join(lines)).replace("\n", "&#10;") + '"'


def _details(diagnosis: Diagnosis) -> str:
    if not diagnosis.health.positions:
        return ""
    columns = ("mean", "min", "p05", "median", "p95", "max")
    header = "".join(f"<th>{column}</th>" for column in ("measure", *columns))
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td>{''.join(f'<td>{summary[column]:.4g}</td>' for column in columns)}</tr>"
        for name, summary in diagnosis.summaries().items()
    )
    return (
        "<details><summary>All measures</summary>"
        f'<div class="card scroll"><table><tr>{header}</tr>{rows}</table></div></details>'
    )
