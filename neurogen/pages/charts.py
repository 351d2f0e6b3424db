"""Charts of pages as inline SVG: sharp, in the colours of the page (see `charts.css`), light and dark, without scripts.

Knows no subject: what is drawn comes from the module of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

__all__ = ["DOT", "Axis", "Figure", "Plot", "round_values"]

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44
LETTER = 6.1
"""About the width of a letter."""

DOT = 2.6


class Figure(NamedTuple):
    """A chart with its heading."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low, high: its ends.
        ticks: values and labels.
        title: what it shows, with the unit.
        grid: whether lines across the plot mark the ticks.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str
    grid: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`; what is outside is put at the end."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


class Plot:
    """A frame with axes that marks are added to; values are given in the units of the axes.

    Args:
        x, y: the axes.
        label: what the chart shows, for those who cannot see it.
        height: in units of which the chart is 480 wide.
        left: room for the labels of the vertical axis.
    """

    def __init__(self, x: Axis, y: Axis, label: str, *, height: int = HEIGHT, left: float = LEFT) -> None:
        self._x, self._y, self._left, self._bottom = x, y, left, height - BOTTOM
        box = f"0 -6 {WIDTH} {height + 6}"
        self._svg = Element("svg", {"viewBox": box, "role": "img", "aria-label": label})
        for value, text in y.ticks:
            if y.grid:
                self._add("path", "grid", d=f"M{left} {self.y(value):.1f}H{WIDTH - RIGHT}")
            self._write(left - 6, self.y(value) + 3.5, text, "end")
        for value, text in x.ticks:
            if x.grid:
                self._add("path", "grid", d=f"M{self.x(value):.1f} {TOP}V{self._bottom}")
            self._write(self.x(value), self._bottom + 16, text, "middle")
        self._write((left + WIDTH - RIGHT) / 2, height - 8, x.title, "middle")
        self._add("path", "base", d=f"M{left} {self._bottom}H{WIDTH - RIGHT}")
        self._write(LEFT - 44, TOP - 3, y.title, "start")

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        return self._left + (WIDTH - RIGHT - self._left) * self._x.share(value)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        return self._bottom - (self._bottom - TOP - 10) * self._y.share(value)

    def text(self, x: float, y: float, text: str, anchor: str = "start", css: str = "tick") -> None:
        """Some words, beside or above a value."""
        gap = {"start": 6, "middle": 0, "end": -6}[anchor]
        self._write(self.x(x) + gap, self.y(y) - 6, text, anchor, css)

    def bar(self, left: float, right: float, value: float, hint: str, css: str = "fill1") -> None:
        """An upright bar from `left` to `right`, with a gap, up to `value`."""
        self._bar(self.x(left) + 1, self.x(right) - 1, self.y(value), self._bottom, hint, css)

    def row(self, low: float, high: float, value: float, hint: str, css: str = "fill1") -> None:
        """A lying bar from `low` to `high`, with a gap, as long as `value`."""
        self._bar(self._left, self.x(value), self.y(high) + 2, self.y(low) - 2, hint, css)

    def dot(self, x: float, y: float, hint: str, css: str = "fill1", radius: float = DOT) -> None:
        """A mark that tells its values when pointed at."""
        place = {"cx": f"{self.x(x):.1f}", "cy": f"{self.y(y):.1f}", "r": f"{radius:.1f}"}
        self._add("circle", css, hint, **place)

    def line(self, points: Iterable[tuple[float, float]], css: str) -> None:
        """A line through points."""
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        if path:
            self._add("path", css, d=f"M{path}")

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Colours and what they stand for, at the top right."""
        x: float = WIDTH - RIGHT
        for css, text in reversed(entries):
            x -= LETTER * len(text)
            self._write(x, TOP - 3, text, "start")
            self._add("circle", css, cx=f"{x - 8:.1f}", cy=f"{TOP - 6.5}", r="4")
            x -= 24

    def svg(self) -> Markup:
        """The whole chart."""
        return Markup(tostring(self._svg, encoding="unicode"))

    def _bar(self, left: float, right: float, top: float, bottom: float, hint: str, css: str) -> None:
        place = {"x": left, "y": top, "width": max(right - left, 1), "height": bottom - top}
        self._add("rect", css, hint, **{name: f"{value:.1f}" for name, value in place.items()}, rx="1.5")

    def _write(self, x: float, y: float, text: str, anchor: str, css: str = "tick") -> None:
        self._add("text", css, x=f"{x:.1f}", y=f"{y:.1f}", **{"text-anchor": anchor}).text = text

    def _add(self, tag: str, css: str, hint: str = "", **attributes: str) -> Element:
        element = SubElement(self._svg, tag, {"class": css, **attributes})
        if hint:
            SubElement(element, "title").text = hint
        return element


def round_values(low: float, high: float, count: int = 4) -> list[float]:
    """Round values from `low` to `high`, about `count`; whole ones where `high` is a whole number above 3."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    if isinstance(high, int):
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, int(high / step + 1e-9) + 1)]
