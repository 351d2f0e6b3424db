"""What `neurogen train` shows while it runs, on stderr: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

from neurogen.cli.common import duration, echo
from neurogen.text.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from neurogen.training.report import ChunkReport

__all__ = ["Display", "LineDisplay", "LiveDisplay", "make_display"]

LINE_SECONDS = 10.0
COLORS = {
    "healthy": "green",
    "flat": "yellow",
    "saturated": "red",
    "worse than uniform": "red",
    "diverged": "magenta",
}


class TimeLeft:
    """The remaining time of a run, from the times of its chunks since it was begun or resumed.

    Args:
        max_chunks: where it ends; None is where the data do.
    """

    def __init__(self, max_chunks: int | None) -> None:
        self._max_chunks = max_chunks
        self._first: tuple[int, float] | None = None

    def seconds(self, chunk: int) -> float | None:
        """After a chunk; None where it is not known."""
        now = time.monotonic()
        if self._first is None:
            self._first = (chunk, now)
        first, started = self._first
        if self._max_chunks is None or chunk <= first:
            return None
        return (now - started) / (chunk - first) * (self._max_chunks - chunk)

    def words(self, chunk: int) -> str:
        """The same in words."""
        if self._max_chunks is None:
            return "until the data end"
        seconds = self.seconds(chunk)
        return "time left unknown yet" if seconds is None else f"{duration(seconds)} left"


class Display:
    """Shows nothing."""

    def show(self, report: ChunkReport) -> None:
        """A chunk is done."""

    def say(self, message: str) -> None:
        """Show a message, whatever else is shown."""
        echo(message, err=True)

    def close(self) -> None:
        """Called when the run has ended."""


class LineDisplay(Display):
    """A line every few seconds, and for every chunk that is measured on held-out data or saved."""

    def __init__(self, max_chunks: int | None = None) -> None:
        self._last = 0.0
        self._left = TimeLeft(max_chunks)

    def show(self, report: ChunkReport) -> None:
        now, seconds = time.monotonic(), self._left.seconds(report.chunk)
        if now - self._last >= LINE_SECONDS or report.validation is not None or report.checkpoint is not None:
            self._last = now
            left = f", {duration(seconds)} left" if seconds is not None else ""
            echo(_line(report) + left, err=True)


class LiveDisplay(Display):
    """A panel that is drawn again at every chunk."""

    def __init__(self, max_chunks: int | None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._max_chunks = max_chunks
        self._validation: ChunkReport | None = None
        self._left = TimeLeft(max_chunks)
        self._live = Live(
            console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def show(self, report: ChunkReport) -> None:
        if report.validation is not None:
            self._validation = report
        self._live.update(self._panel(report), refresh=True)

    def say(self, message: str) -> None:
        self._live.console.print(printable(message), highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        self._live.stop()

    def _panel(self, report: ChunkReport) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        health = report.health
        of = "" if self._max_chunks is None else f" of {self._max_chunks:,}"
        table = Table.grid(padding=(0, 2))
        rows = {
            "chunk": f"{report.chunk:,}{of}, {self._left.words(report.chunk)}",
            "tokens": f"{report.tokens / 1e6:,.2f} million, epoch {report.epoch + 1}",
            "loss": f"{_number(health.loss)} nats a token",
            "accuracy": f"{health.accuracy:.1%} greedy, {health.top5_accuracy:.1%} among the first five",
            "held out": self._held_out(),
            "speed": f"{report.tokens_per_second:,.0f} tokens/s",
            "step": f"learning rate {report.learning_rate:.2e}, gradient norm {_number(report.gradient_norm, 2)}",
        }
        for name, value in rows.items():
            table.add_row(Text(name, style="bold"), Text(value))
        verdict = Text.assemble((report.verdict, f"bold {COLORS[report.verdict]}"), f": {report.reason}")
        return Group(table, verdict)

    def _held_out(self) -> str:
        if self._validation is None or self._validation.validation is None:
            return "not measured yet"
        health = self._validation.validation
        return f"loss {_number(health.loss)}, accuracy {health.accuracy:.1%} at chunk {self._validation.chunk:,}"


def make_display(*, quiet: bool, max_chunks: int | None) -> Display:
    """The display that suits stderr."""
    if quiet:
        return Display()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return LiveDisplay(max_chunks) if terminal else LineDisplay(max_chunks)


def _line(report: ChunkReport) -> str:
    health = report.health
    held_out = report.validation
    parts = [
        f"chunk {report.chunk}",
        f"loss {_number(health.loss)}",
        f"accuracy {health.accuracy:.1%}",
        *([f"held out {_number(held_out.loss)} / {held_out.accuracy:.1%}"] if held_out is not None else []),
        report.verdict,
        f"{report.tokens_per_second:,.0f} tokens/s",
        *([f"saved {report.checkpoint}"] if report.checkpoint is not None else []),
    ]
    return ", ".join(parts)


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"
