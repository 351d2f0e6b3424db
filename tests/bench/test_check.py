"""`python -m neurogen.bench.check`: ratios against committed figures. No test looks at absolute speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neurogen.bench.cells import Cell
from neurogen.bench.check import CELLS, ExpectedRatios, allowed_growth, check, read_figures
from neurogen.bench.check import command as check_command
from neurogen.bench.machine import this_machine

SECONDS = 0.01
FIGURE = ExpectedRatios(sampler="topk", params={}, cell=Cell(), ratios={"floor": 2.0, "torch": 0.5})


def test_a_cell_that_looks_slower_is_measured_again_after_the_others_and_the_best_counts() -> None:
    other = FIGURE.model_copy(update={"sampler": "topp"})
    order: list[str] = []
    noisy = iter([{"floor": 9.0, "torch": 0.5}, {"floor": 2.0, "torch": 0.5}, {"floor": 2.5, "torch": 4.0}])

    def measured(figure: ExpectedRatios) -> dict[str, float]:
        order.append(figure.sampler)
        return next(noisy)

    assert list(check([FIGURE, other], measured, 1.5, pause=0)) == [(other, 1.0, 1), (FIGURE, 1.25, 2)]
    assert order == ["topk", "topp", "topk"]


def test_a_cell_that_stays_slower_is_measured_four_times_and_fails() -> None:
    measured = iter([{"floor": ratio, "torch": 0.5} for ratio in (9.0, 8.0, 4.0, 7.0)])
    assert list(check([FIGURE], lambda figure: next(measured), 1.5, pause=0)) == [(FIGURE, 2.0, 4)]
    assert next(measured, None) is None


def test_a_ratio_may_grow_more_on_another_processor() -> None:
    here = this_machine(1)
    assert allowed_growth(here, here) == 1.5
    assert allowed_growth(here.model_copy(update={"cpu": "another"}), here) == 3.0


@pytest.fixture
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.bench.check.CELLS", (Cell(vocab=300),))
    monkeypatch.setattr("neurogen.bench.check.SECONDS", SECONDS)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("few_cells")
def test_an_update_keeps_the_other_samplers_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    for name in ("topk", "greedy"):
        assert CliRunner().invoke(check_command, ["--figures", str(file), "--update", name]).exit_code == 0
    assert [figure["sampler"] for figure in json.loads(file.read_text())["figures"]] == ["topk", "greedy"]
    unknown = CliRunner().invoke(check_command, ["--figures", str(file), "minp"])
    assert unknown.exit_code == 1
    assert f"{file} holds no figures of minp. Add them with --update." in unknown.output


@pytest.mark.usefixtures("few_cells")
def test_figures_are_written_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    written = CliRunner().invoke(check_command, ["--figures", str(file), "--update", "topk"])
    assert written.output == f"Wrote 1 figures to {file}.\n"
    figures = json.loads(file.read_text())
    figures["figures"][0]["ratios"] = {"floor": 1e6, "torch": 1e6}
    file.write_text(json.dumps(figures))
    passed = CliRunner().invoke(check_command, ["--figures", str(file)])
    assert passed.exit_code == 0, passed.output
    assert passed.output.startswith("ok")
    figures["figures"][0]["ratios"] = {"floor": 1e-6, "torch": 1e-6}
    file.write_text(json.dumps(figures))
    failed = CliRunner().invoke(check_command, ["--figures", str(file)])
    assert failed.exit_code == 1
    assert "SLOWER" in failed.output
    assert "1 of 1 cells have become slower, in 4 measurements each: topk normal float32 vocab=300" in failed.output
    assert "--update" in failed.output


@pytest.mark.parametrize("content", [None, "{", '{"machine": 1}'])
def test_figures_that_cannot_be_read_are_an_error_in_words(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "figures.json"
    if content is not None:
        file.write_text(content)
    result = CliRunner().invoke(check_command, ["--figures", str(file)])
    assert result.exit_code == 1
    assert f"The figures in {file} cannot be read" in result.output
    assert "Traceback" not in result.output


def test_the_committed_figures_can_be_read_and_are_of_cells_that_are_checked() -> None:
    figures = read_figures(Path(__file__).resolve().parents[2] / "benchmarks" / "figures.json").figures
    assert {figure.sampler for figure in figures} == {"greedy", "topk", "topp"}
    assert {figure.cell for figure in figures} == set(CELLS)
