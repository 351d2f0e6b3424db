"""Charts of a run, from its metrics alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from neurogen import DataError
from neurogen.pages.training_charts import draw_charts, read_metrics


def line(chunk: int, **values: Any) -> dict[str, Any]:
    common = {
        "chunk": chunk, "tokens": chunk * 4096, "loss": 8 / chunk**0.3, "accuracy": 0.1 * chunk**0.2,
        "entropy_share": 0.9 / chunk**0.1, "top1_probability": 0.1, "tokens_per_second": 5000.0, "verdict": "healthy",
    }  # fmt: skip
    return {**common, **values}


def drawn(folder: Path, lines: list[dict[str, Any]]) -> np.ndarray:
    metrics, picture = folder / "metrics.jsonl", folder / "charts.png"
    metrics.write_text("".join(json.dumps(item) + "\n" for item in lines))
    draw_charts(metrics, picture)
    return np.asarray(image.imread(picture))


@pytest.mark.parametrize("chunks", [1, 2, 59, 500])
def test_a_picture_is_drawn_of_any_number_of_chunks(tmp_path: Path, chunks: int) -> None:
    pixels = drawn(tmp_path, [line(chunk) for chunk in range(1, chunks + 1)])
    assert pixels.shape[1] > pixels.shape[0] > 800
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_what_was_measured_shows(tmp_path: Path) -> None:
    plain = drawn(tmp_path, [line(chunk) for chunk in range(1, 60)])
    held_out = drawn(tmp_path, [line(c, val_loss=5.0, val_accuracy=0.2) for c in range(1, 60)])
    contrasted = drawn(tmp_path, [line(c, contrast_accuracy=0.02) for c in range(1, 60)])
    flat = drawn(tmp_path, [line(c, verdict="flat") for c in range(1, 60)])
    for other in (held_out, contrasted, flat):
        assert (plain != other).any()


@pytest.mark.parametrize("chunks", [1, 120])
@pytest.mark.parametrize("number", [None, float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out_of_every_panel(tmp_path: Path, chunks: int, number: float | None) -> None:
    names = ("loss", "entropy_share", "top1_probability", "val_loss", "contrast_accuracy")
    bad = [line(c, verdict="diverged", **dict.fromkeys(names, number)) for c in range(1, chunks + 1)]
    drawn(tmp_path, bad)
    mixed = [line(c, loss=number) if c % 3 else line(c) for c in range(1, chunks + 1)]
    assert chunks == 1 or (drawn(tmp_path, mixed) != drawn(tmp_path, bad)).any()


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    drawn(tmp_path, [line(1), line(2, loss=float("nan"), verdict="diverged"), line(3, loss=float("inf"))])


@pytest.mark.parametrize(
    ("text", "message"), [("", "holds no chunk"), ("{", "cannot be read"), (None, "cannot be read")]
)
def test_metrics_that_are_none_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "metrics.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_metrics(file)
