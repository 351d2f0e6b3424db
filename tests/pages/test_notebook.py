"""Samplers, results and the rest show themselves in a notebook; the example notebook runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import neurogen
from neurogen.models.language_model import load_model
from neurogen.text.runner import Runner

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "neurogen.ipynb"


def test_a_sampler_shows_its_parameters() -> None:
    html = neurogen.load_sampler("topk", k=7)._repr_html_()
    assert "<b>7</b>" in html
    assert "an integer &gt;= 0" in html
    assert "neurogen-topk" in html


def test_a_result_shows_its_text_and_how_to_get_it_again() -> None:
    result = Runner(load_model("starter"), neurogen.load_sampler("topk"), seed=3, max_new_tokens=5).generate("<b>")[0]
    html = result._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html.partition("</style>")[2]
    assert "seed 3" in html


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_example_notebook_runs_and_every_cell_shows_something() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook: Any = nbformat.read(EXAMPLE, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [[kind for output in cell.outputs for kind in output.get("data", {})] for cell in cells]
    assert all("text/html" in kinds for kinds in shown), shown
