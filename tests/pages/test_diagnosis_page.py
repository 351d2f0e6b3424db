"""The page of a diagnosis: one file that is whole, harmless and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from neurogen import DataError
from neurogen.diagnosis.diagnose import Diagnosis, Token, diagnose_logits, diagnose_model
from neurogen.diagnosis.weights import examine
from neurogen.models.language_model import load_model
from neurogen.pages.diagnosis import fragment, page, write_page
from neurogen.pages.diagnosis_charts import confidence_chart, position_chart, rank_chart, share_chart, weights_chart

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and insists that every tag is closed where it should be."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def of_model(tiny_model_dir: Path) -> Diagnosis:
    text = 'once upon a time there was a <b>little</b> girl & "lily"\nshe loved to play'
    return diagnose_model(load_model(str(tiny_model_dir), device="cpu"), [text] * 3)


@pytest.fixture(scope="module")
def of_logits() -> Diagnosis:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 2000, generator=generator) * 3
    targets = logits.softmax(-1).multinomial(1, generator=generator).squeeze(1)
    return diagnose_logits(logits, targets, source='a <script>alert("x")</script> & more')


@pytest.fixture(scope="module")
def of_nothing() -> Diagnosis:
    return diagnose_logits(torch.full((4, 9), torch.nan), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("name", ["of_model", "of_logits", "of_nothing"])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(name: str, request: pytest.FixtureRequest) -> None:
    diagnosis: Diagnosis = request.getfixturevalue(name)
    html = page(diagnosis)
    found = parsed(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in found.tags}
    assert not [attrs for _, attrs in found.tags if {"src", "href", "onload", "onclick"} & attrs.keys()]
    assert not re.search(r"https?:|@import|url\(", html)
    assert f" {diagnosis.verdict}" in found.text
    assert all(reason in found.text.replace("\u00a0", " ") for reason in diagnosis.reasons)
    assert "prefers-color-scheme: dark" in html
    assert "nan" not in re.sub("<style>.*</style>", "", html, flags=re.DOTALL).replace("NaN", "").split("<svg")[0]
    assert len(html) < 200_000


def test_texts_are_escaped(of_logits: Diagnosis, of_model: Diagnosis) -> None:
    assert of_logits.source in parsed(page(of_logits)).text
    assert "<script" not in page(of_logits)
    text = parsed(page(of_model)).text
    assert 'a <b>little</b> girl & "lily"\nshe loved' in text
    tokens = tuple(Token("<script>&\"'", 1, position, "<script>\n") for position in (None, 0))
    found = parsed(page(replace(of_model, document=tokens)))
    assert "script" not in {tag for tag, _ in found.tags}
    assert "<script>&\"'<script>&\"'" in found.text
    assert any('the model\'s choice: "<script>\\n"' in (attrs.get("data-t") or "") for _, attrs in found.tags)


def test_the_table_has_every_sampler_with_bars_to_scale(of_logits: Diagnosis) -> None:
    html = page(of_logits)
    table = html[html.index("<table>") : html.index("</table>")]
    assert table.count("<tr") == 6
    widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%', table)]
    accuracies = [score.accuracy for score in of_logits.accuracies]
    assert widths == pytest.approx([100 * accuracy / max(accuracies) for accuracy in accuracies], abs=0.01)


def test_every_token_of_the_first_text_tells_its_probability(of_model: Diagnosis) -> None:
    spans = [attrs for tag, attrs in parsed(page(of_model)).tags if tag == "span" and "data-t" in attrs]
    assert len(spans) == len(of_model.document)
    measures = of_model.measures
    assert spans[0] == {"data-t": '"<s>"\nnot measured'}
    hint = (spans[3]["data-t"] or "").replace("\u00a0", " ")
    assert f"rank {measures.rank[2]:,.0f} of 320; entropy {measures.entropy[2]:.2f} nats" in hint
    assert "the model's choice:" in hint
    assert {attrs["class"] for attrs in spans[1:]} <= {"p2", "p3", "p4"}


def test_what_is_unknown_has_no_section(of_model: Diagnosis, of_logits: Diagnosis, of_nothing: Diagnosis) -> None:
    titles = ("Weights", "Along the context", "The first text", "What each sampler", "Entropy", "All measures")
    shown = [[title in parsed(page(d)).text for title in titles] for d in (of_model, of_logits, of_nothing)]
    assert shown == [[True] * 6, [False, False, False, True, True, True], [False] * 6]


def test_in_a_notebook_nothing_else_is_styled(of_logits: Diagnosis) -> None:
    html = of_logits._repr_html_()
    assert html == fragment(of_logits)
    parsed(html)
    css = html[html.index("<style>") + 7 : html.index("</style>")]
    outer = re.sub(r"@media[^{]*\{(.*?\})\s*\}", r"\1", css, flags=re.DOTALL)
    selectors = [selector for rule in re.findall(r"([^{}]+)\{", outer) for selector in rule.split(",")]
    assert len(selectors) > 30
    assert all(selector.strip().startswith(".ng") for selector in selectors)


# The file


def test_the_file_appears_whole_with_usual_permissions(of_logits: Diagnosis, tmp_path: Path) -> None:
    path = tmp_path / "d.html"
    before = os.umask(0o027)
    try:
        write_page(of_logits, path)
    finally:
        os.umask(before)
    assert path.read_text(encoding="utf-8") == page(of_logits)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["d.html"]


def test_a_page_that_fails_leaves_the_old_file(
    of_logits: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.html"
    path.write_text("old")

    def full_disk(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(DataError, match=r"cannot be written to .*d\.html: No space left on device"):
        write_page(of_logits, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["d.html"]


def test_a_folder_that_is_not_there_is_told(of_logits: Diagnosis, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written to"):
        write_page(of_logits, tmp_path / "absent" / "d.html")


# Charts


def hints(svg: str) -> list[str]:
    parsed(svg)
    return re.findall("<title>([^<]*)</title>", svg)


def heights(svg: str) -> list[float]:
    return [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]


def test_a_histogram_has_a_bar_for_every_filled_bin() -> None:
    svg = share_chart(np.array([0.0, 0.01, 0.52, 1.0]), "x")
    assert hints(svg) == [
        "x 0.00 to 0.05: 50 % of positions",
        "x 0.50 to 0.55: 25 % of positions",
        "x 0.95 to 1.00: 25 % of positions",
    ]
    tall, *others = heights(svg)
    assert others == pytest.approx([tall / 2] * 2, abs=0.1)


def test_ranks_are_binned_at_what_top_k_keeps() -> None:
    svg = rank_chart(np.array([1.0, 1, 2, 50, 51, 100, 1001, 99_999]), 100_000)
    assert hints(svg) == [
        f"rank {label} of positions"
        for label in ("1: 25 %", "2-5: 12.5 %", "11-50: 12.5 %", "51-100: 25 %", "1k-10k: 12.5 %", "&gt; 10k: 12.5 %")
    ]
    assert re.findall('<rect class="(fill.)"', svg) == ["fill1"] * 3 + ["fill2"] * 3


def test_bins_that_the_vocabulary_does_not_reach_are_left_out() -> None:
    svg = rank_chart(np.array([1.0, 2, 9]), 12)
    assert "&gt; 10<" in svg
    assert "51" not in re.sub(r"<(path|rect|text|circle|svg)[^>]*>", "", svg)


def test_confidence_shows_every_bin() -> None:
    found = hints(confidence_chart([(30, 0.25, 0.2), (10, 0.95, 0.5)]))
    assert found == [
        "30 positions: given 25 % on average, right at 20 %",
        "10 positions: given 95 % on average, right at 50 %",
    ]


@pytest.mark.parametrize("positions", [[0], [0, 1], list(range(500))])
def test_any_length_of_context_can_be_drawn(positions: Sequence[int]) -> None:
    values = np.linspace(3, 1, len(positions))
    svg = position_chart(np.array(positions), values, values + 1, 6.2)
    found = hints(svg)
    assert len(found) == 2 * min(len(positions), 32)
    assert found[0].startswith(f"entropy {values[: max(1, len(positions) // 32)].mean():.2f} nats"[:11])
    assert "nan" not in svg


def test_weights_that_stand_out_are_ringed_above_all_others() -> None:
    tensors = {f"model.layers.{i}.mlp.weight": torch.full((4, 4), 0.1) for i in range(5)}
    tensors |= {"model.embed.weight": torch.full((4, 4), 0.2), "model.norm.weight": torch.ones(4)}
    tensors["model.layers.3.mlp.weight"] = torch.zeros(4, 4)
    svg = weights_chart(examine(tensors.items()))
    found = hints(svg)
    assert len(found) == 7
    assert found[-1] == "model.layers.3.mlp.weight [4, 4]: RMS 0 (dead)"
    assert svg.count('class="flagged"') == 1
    assert "1e-0" not in svg  # a zero does not stretch the axis


def test_models_without_numbered_layers_can_be_drawn() -> None:
    assert len(hints(weights_chart(examine([("head.weight", torch.zeros(3, 3))])))) == 1
