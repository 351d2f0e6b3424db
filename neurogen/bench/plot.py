"""Time against the number of logits, on logarithmic axes, as one PNG: a panel for each sampler and kind of logits."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import log10
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from neurogen.bench.results import BenchReport, BenchResult
from neurogen.pages.pictures import plain_panel, save_picture

__all__ = ["draw_plot", "slope"]

OWN = "#d1602b"
COLORS = {
    "floor": "#8a8f98",
    "torch": "#3b6fb6",
    "transformers": "#2f8f5b",
    "llama.cpp": "#7d3cbe",
    "flashinfer": "#b8860b",
}
MARKERS = "os^Dv*"
PANEL = (5.4, 4.5)
TITLE_COLUMNS = 80
FEW_DECADES = 1e3
SIZES = {1.0: "", 1e3: "k", 1e6: "M"}
TIMES = {1.0: " \N{MICRO SIGN}s", 1e3: " ms", 1e6: " s"}

Points = dict[int, list[tuple[int, float]]]
"""Batch -> (logits, microseconds)."""


class Panel(NamedTuple):
    """What is drawn together: it differs in vocab and batch alone."""

    sampler: str
    kind: str
    dtype: str


def draw_plot(report: BenchReport, picture: Path) -> None:
    """Draw a report into a PNG, which is replaced when whole.

    Raises:
        DataError: the picture cannot be written.
    """
    panels: dict[Panel, list[BenchResult]] = {}
    for result in report.results:
        panels.setdefault(Panel(result.label, result.cell.kind, result.cell.dtype), []).append(result)
    columns = _columns(list(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (panel, results) in zip(grid.T.flat, panels.items(), strict=False):
        _draw_panel(axes, panel, results)
    for axes in grid.T.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid.flat:
        _label_ticks(axes)
    title = "\n".join(textwrap.wrap(_title(report), TITLE_COLUMNS * columns))
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#555555")
    save_picture(figure, picture, dpi=120)


def _columns(panels: Sequence[Panel]) -> int:
    """A column for each sampler, a row for each kind and dtype, where that makes a full rectangle."""
    samplers = len({panel.sampler for panel in panels})
    return samplers if len(panels) % samplers == 0 else min(3, len(panels))


def _draw_panel(axes: Axes, panel: Panel, results: Sequence[BenchResult]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_panel(axes)
    batches = sorted({result.cell.batch for result in results})
    markers = {batch: MARKERS[number % len(MARKERS)] for number, batch in enumerate(batches)}
    _draw_line(axes, panel.sampler.split("(")[0], OWN, _times(results, None), markers, bold=True)
    for peer in dict.fromkeys(peer for result in results for peer in result.peers):
        _draw_line(axes, peer, COLORS.get(peer, "#555555"), _times(results, peer), markers)
    axes.set_title(panel.sampler, loc="left", fontweight="bold", fontsize=11)
    axes.set_title(f"{panel.kind}, {panel.dtype}", loc="right", fontsize=9, color="#555555")
    axes.set_xlabel("logits (batch * vocab)")
    axes.set_ylabel("time of a call")
    axes.tick_params(labelbottom=True, labelleft=True)
    _draw_legend(axes, markers)


def _label_ticks(axes: Axes) -> None:
    """Plain words in place of powers of ten: 32k logits, 5 ms; three a decade where there are few decades."""
    for axis, units in ((axes.xaxis, SIZES), (axes.yaxis, TIMES)):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
        axis.set_major_formatter(FuncFormatter(partial(_in_units, units)))
        axis.set_minor_formatter(NullFormatter())


def _in_units(units: Mapping[float, str], value: float, position: int | None) -> str:
    unit = max((unit for unit in units if unit <= value), default=min(units))
    return f"{value / unit:g}{units[unit]}"


def _times(results: Iterable[BenchResult], peer: str | None) -> Points:
    points: Points = {}
    for result in results:
        timing = result.own if peer is None else result.peers.get(peer)
        if timing is not None:
            points.setdefault(result.cell.batch, []).append((result.cell.size, timing.microseconds.median))
    return points


def _draw_line(
    axes: Axes, name: str, color: str, points: Points, markers: Mapping[int, str], *, bold: bool = False
) -> None:
    """The points of every batch, and the straight line through all of them."""
    every = sorted(point for batch in points.values() for point in batch)
    for batch, some in points.items():
        sizes, times = zip(*some, strict=True)
        size, edge = (42 if bold else 26), "white"
        axes.scatter(sizes, times, s=size, color=color, marker=markers[batch], edgecolors=edge, zorder=4 if bold else 3)
    fitted = slope(every)
    if fitted is None:
        axes.plot([], [], color=color, label=name)
        return
    ends = [every[0][0], every[-1][0]]
    line = [10 ** (fitted[1] + fitted[0] * log10(size)) for size in ends]
    style = {"linewidth": 2.4 if bold else 1.3, "linestyle": "-" if bold else "--", "zorder": 2.5 if bold else 2}
    axes.plot(ends, line, color=color, label=f"{name}, slope {fitted[0]:.2f}", **style)  # type: ignore[arg-type]


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Slope and intercept of log10(time) over log10(size), by least squares; None for a single size."""
    if len({size for size, _ in points}) < 2:
        return None
    xs, ys = zip(*((log10(size), log10(time)) for size, time in points), strict=True)
    return statistics.linear_regression(xs, ys)


def _draw_legend(axes: Axes, markers: Mapping[int, str]) -> None:
    if len(markers) > 1:
        for batch, marker in markers.items():
            axes.scatter([], [], color="#555555", marker=marker, s=26, label=f"batch {batch}")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, borderaxespad=0)


def _title(report: BenchReport) -> str:
    machine = report.machine
    where = machine.device or machine.cpu
    return (
        f"Medians, and lines fitted to them. {where}, {machine.threads} thread{'s' if machine.threads != 1 else ''}, "
        f"neurogen {machine.neurogen}, torch {machine.torch}."
    )
