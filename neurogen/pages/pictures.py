"""Shared code of matplotlib pictures: the look of a panel, and a PNG that is replaced when it is complete."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurogen.files import replacing, writing

__all__ = ["plain_panel", "save_picture"]


def plain_panel(axes: Axes) -> None:
    """Give a panel a faint grid and no frame at the top and the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_picture(figure: Figure, picture: Path, *, dpi: int) -> None:
    """Write a PNG; until it is complete, the previous one stays in place.

    Raises:
        DataError: it cannot be written.
    """
    with writing("The picture", picture), replacing(picture) as draft:
        figure.savefig(draft, format="png", dpi=dpi)
