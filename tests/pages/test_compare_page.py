"""The page of a comparison: its table, charts and texts, from outcomes that are made by hand."""

from __future__ import annotations

import re

import pytest

from neurogen.diagnosis.compare import Comparison, Estimate, Outcome, Sample
from neurogen.pages.charts import round_values
from neurogen.pages.compare import fragment, page


def outcome(label: str, perplexity: float, **others: Estimate) -> Outcome:
    measures = {"perplexity": Estimate(perplexity, perplexity - 0.5, perplexity + 1), **others}
    samples = [Sample(0, number, f"text {number}", [1], 1, 0.0, 0.0, 1) for number in range(2)]
    return Outcome(label, samples, measures, 1.0, 80.0)


@pytest.fixture
def comparison() -> Comparison:
    first = outcome("greedy", 2.0, distinct_2=Estimate(0.3, None, None), repetition=Estimate(0.0, 0.0, 0.0))
    second = outcome("topp(p=0.5, temperature=0.8)", 3.0, distinct_2=Estimate(0.8, 0.7, 0.9))
    third = outcome("topp(p=0.9, temperature=0.8)", 4.0)
    options = {"n": 2, "max_new_tokens": 8, "seed": 1}
    return Comparison("<m>", ["a & b"], options, [first, second, third])


def charts(html: str) -> list[str]:
    return re.findall("<svg.*?</svg>", html)


def test_a_chart_tells_each_estimate_with_its_interval(comparison: Comparison) -> None:
    quality, perplexity, distinct, repetition = charts(page(comparison))
    assert re.findall("<title>(.*?)</title>", perplexity) == [
        "greedy: 2 [1.5, 3]", "topp p=0.5: 3 [2.5, 4]", "topp p=0.9: 4 [3.5, 5]",
    ]  # fmt: skip
    assert quality.count("<circle") == 2  # the third has no distinct pairs
    assert distinct.count("<rect") == 2
    assert "<rect" not in repetition
    widths = [float(width) for width in re.findall('width="([0-9.]+)"', perplexity)]
    assert widths == pytest.approx([widths[0], 1.5 * widths[0], 2 * widths[0]], abs=0.2)


def test_charts_take_their_colours_from_the_page(comparison: Comparison) -> None:
    html = page(comparison)
    for chart in charts(html):
        assert not re.search("#[0-9a-f]{3}|rgb|style=", chart)
        assert set(re.findall('class="([a-z]+)', chart)) <= set(re.findall(r"\.ng \.([a-z]+)", html))


def test_the_table_shows_what_was_measured(comparison: Comparison) -> None:
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in page(comparison).split("<tr>")]
    rows = {row[0]: row[1:4] for row in cells if row}
    assert rows["distinct 2"] == ["0.3", "0.8 [0.7, 0.9]", "-"]
    assert rows["tokens a second"] == ["80", "80", "80"]
    assert "entropy" not in rows


def test_samples_notices_and_failures_stand_apart(comparison: Comparison) -> None:
    failures = [(0, 2, "out of <memory>"), (0, 3, "again")]
    one = comparison.outcomes[0]
    noted = Sample(0, 0, "first", [1], 1, 0.0, 0.0, 1, notices=["cut"])
    html = fragment(
        Comparison("m", ["a"], comparison.options, [
            Outcome(one.label, [noted, one.samples[1]], one.measures, 1.0, 1.0, failures[:1]),
            Outcome("failed", [], one.measures, 1.0, 1.0, failures),
        ])
    )  # fmt: skip
    texts = re.findall(r'<div class="card"><b>.*?</b>(.*?)</div>', html, flags=re.DOTALL)
    note = '<span class="note">{}</span>'.format
    assert [re.sub(r"\s*\n\s*", "", text) for text in texts] == [
        f'first<p class="note">cut</p><hr>text 1<hr>{note("out of &lt;memory&gt;")}',
        f"{note('out of &lt;memory&gt;')}<hr>{note('again')}",
    ]


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [(0, 1.0, [0, 0.5, 1.0]), (0.3, 0.9, [0.4, 0.6, 0.8]), (0, 3, [0, 1, 2, 3]), (2, 2, [2])],
)
def test_ticks_are_round(low: float, high: float, values: list[float]) -> None:
    assert round_values(low, high) == pytest.approx(values)
