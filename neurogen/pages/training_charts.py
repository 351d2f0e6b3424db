"""Charts of a training run from its `metrics.jsonl`, as one picture. Knows nothing of training itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurogen.errors import DataError
from neurogen.files import read_text
from neurogen.pages.pictures import plain_panel, save_picture

__all__ = ["draw_charts", "read_metrics"]

Lines = Sequence[dict[str, Any]]

SMOOTHED = 60
"""A curve of more chunks than this is drawn a second time, as the means of about this many stretches."""

TRAIN, HELD_OUT, SAMPLED = "#3b6fb6", "#d1602b", "#8a8f98"
TROUBLE = {"flat": "#e9b44c", "saturated": "#c0392b", "worse than uniform": "#a0522d", "diverged": "#7d3cbe"}


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a number that was not finite, which is null there, is NaN.

    Raises:
        DataError: it cannot be read, or holds no chunk.
    """
    try:
        lines = [json.loads(line) for line in read_text(file).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}. It is written by `neurogen train`.") from None
    if not lines:
        raise DataError(f"{file} holds no chunk yet; charts need at least one.")
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def draw_charts(metrics: Path, picture: Path) -> None:
    """Draw loss, accuracy, throughput, tokens, loss against accuracy and entropy into one PNG, replaced when whole.

    Raises:
        DataError: the metrics cannot be read, or the picture cannot be written.
    """
    lines = read_metrics(metrics)
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    panels: tuple[Callable[[Any, Lines], None], ...] = (_loss, _accuracy, _entropy, _speed, _tokens, _loss_and_accuracy)
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        plain_panel(axes)
        panel(axes, lines)
    save_picture(figure, picture, dpi=110)


def _loss(axes: Axes, lines: Lines) -> None:
    _curve(axes, lines, "loss", TRAIN, "training")
    _points(axes, lines, "val_loss", HELD_OUT, "held out")
    _label(axes, "Loss", "nats a token")


def _accuracy(axes: Axes, lines: Lines) -> None:
    _curve(axes, lines, "accuracy", TRAIN, "greedy, training")
    _points(axes, lines, "val_accuracy", HELD_OUT, "greedy, held out")
    if "contrast_accuracy" in lines[-1]:
        _curve(axes, lines, "contrast_accuracy", SAMPLED, "what drawing by top-k 50 reports")
    axes.yaxis.set_major_formatter("{x:.0%}")
    _label(axes, "Accuracy of the next token", "")


def _entropy(axes: Axes, lines: Lines) -> None:
    _curve(axes, lines, "entropy_share", TRAIN, "entropy / log(vocab)")
    _curve(axes, lines, "top1_probability", HELD_OUT, "top-1 probability")
    for verdict, color in TROUBLE.items():
        chunks = [line["chunk"] for line in lines if line["verdict"] == verdict]
        if chunks:
            axes.scatter(chunks, [0.0] * len(chunks), marker="|", color=color, label=f"{verdict} ({len(chunks):,})")
    axes.set_ylim(-0.03, 1.03)
    _label(axes, "Entropy and confidence", "")


def _speed(axes: Axes, lines: Lines) -> None:
    _curve(axes, lines, "tokens_per_second", TRAIN, "")
    axes.set_ylim(bottom=0)
    _label(axes, "Throughput", "tokens a second")


def _tokens(axes: Axes, lines: Lines) -> None:
    axes.plot([line["chunk"] for line in lines], [line["tokens"] / 1e6 for line in lines], color=TRAIN)
    _label(axes, "Tokens trained on", "millions")


def _loss_and_accuracy(axes: Axes, lines: Lines) -> None:
    shades = axes.scatter(
        [_number(line["loss"]) for line in lines],
        [_number(line["accuracy"]) for line in lines],
        c=[line["chunk"] for line in lines],
        cmap="viridis",
        s=9,
    )
    axes.figure.colorbar(shades, ax=axes, label="chunk")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title("Loss against accuracy", loc="left", fontweight="bold")
    axes.set_xlabel("loss")


def _curve(axes: Axes, lines: Lines, name: str, color: str, label: str) -> None:
    """Every chunk faintly, and the mean of stretches on top of it."""
    chunks, values = [line["chunk"] for line in lines], [_number(line.get(name)) for line in lines]
    if len(lines) <= SMOOTHED:
        axes.plot(chunks, values, color=color, label=label)
        return
    axes.plot(chunks, values, color=color, alpha=0.2, linewidth=0.7)
    size = math.ceil(len(lines) / SMOOTHED)
    starts = range(0, len(lines), size)
    middles = [sum(chunks[i : i + size]) / len(chunks[i : i + size]) for i in starts]
    means = [_mean(values[i : i + size]) for i in starts]
    axes.plot(middles, means, color=color, label=label)


def _mean(values: Sequence[float]) -> float:
    """Of the finite values; NaN, which is not drawn, if no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _points(axes: Axes, lines: Lines, name: str, color: str, label: str) -> None:
    measured = [line for line in lines if name in line]
    if measured:
        values = [_number(line[name]) for line in measured]
        axes.plot([line["chunk"] for line in measured], values, "o-", markersize=3, color=color, label=label)


def _number(value: Any) -> float:
    """The value to draw: NaN, which is left out, where it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("chunk")
    axes.set_ylabel(unit)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
