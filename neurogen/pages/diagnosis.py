"""A diagnosis as one small HTML page, light and dark, without scripts and without external files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from neurogen.diagnosis.diagnose import Diagnosis, Token
from neurogen.diagnosis.measures import Measures
from neurogen.diagnosis.verdict import Verdict, percent
from neurogen.files import write_text
from neurogen.pages import page as pages
from neurogen.pages.charts import Figure
from neurogen.pages.diagnosis_charts import confidence_chart, position_chart, rank_chart, share_chart, weights_chart

__all__ = ["fragment", "page", "write_page"]

TONES: dict[Verdict, str] = {"healthy": "good", "undertrained": "warn"}
MEASURED_ON = {"logits": "raw logits", "probabilities": "the logarithms of probabilities"}


def write_page(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the page; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    write_text("The page", path, page(diagnosis))


def page(diagnosis: Diagnosis) -> str:
    """A whole HTML document."""
    return pages.document("diagnosis.html", **_values(diagnosis))


def fragment(diagnosis: Diagnosis) -> str:
    """The same for a notebook, where it must not style anything else."""
    return pages.fragment("diagnosis.html", **_values(diagnosis))


def _values(diagnosis: Diagnosis) -> dict[str, Any]:
    """What the template shows."""
    return {
        "diagnosis": diagnosis,
        "health": diagnosis.health,
        "measures": diagnosis.measures,
        "measured_on": MEASURED_ON[diagnosis.measures.kind],
        "uniform": math.log(diagnosis.measures.vocab_size),
        "tone": TONES.get(diagnosis.verdict, "bad"),
        "figures": _figures(diagnosis),
        "tokens": [_token(diagnosis.measures, token) for token in diagnosis.document],
    }


def _figures(diagnosis: Diagnosis) -> list[Figure]:
    measures = diagnosis.measures
    valid = measures.valid
    figures: list[Figure] = []
    if valid.any():
        figures += [
            Figure(
                "Entropy",
                "1 is a uniform guess, 0 certainty. A flat model stands at the right end, a saturated one at the left.",
                share_chart(measures.entropy_share[valid], "entropy over log(vocabulary)"),
            ),
            Figure(
                "Confidence",
                "A healthy model is certain at some positions and unsure at others.",
                share_chart(measures.top1[valid], "probability of the top token"),
            ),
            Figure(
                "Where the right token stands",
                "Learning moves it to the left, long before accuracy shows anything.",
                rank_chart(measures.rank[valid], measures.vocab_size),
            ),
            Figure(
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
        figures.append(Figure("Along the context", "Both fall where the model uses what it has read.", chart))
    if diagnosis.weights:
        note = "Peers lie close together. Rings mark what is dead, exploded or not finite."
        figures.append(Figure("Weights", note, weights_chart(diagnosis.weights)))
    return figures


def _token(measures: Measures, token: Token) -> dict[str, str | None]:
    """A token's text, its class, and what it tells when pointed at."""
    at = token.position
    if at is None or not measures.valid[at]:
        return {"text": token.text, "css": None, "hint": f"{_quoted(token.text)}\nnot measured"}
    probability = float(measures.target_probability[at])
    hint = (
        f"{_quoted(token.text)}: {percent(probability)}, rank {measures.rank[at]:,.0f} of {measures.vocab_size:,}; "
        f"entropy {measures.entropy[at]:.2f} nats\n"
        f"the model's choice: {_quoted(token.best)}, {percent(float(measures.top1[at]))}"
    )
    return {"text": token.text, "css": pages.probability_class(probability), "hint": hint}


def _quoted(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'
