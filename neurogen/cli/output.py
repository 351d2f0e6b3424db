"""What a run shows: texts or JSON on stdout; progress, closing line and problems on stderr. Knows no model."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import is_terminal, needs_escapes
from neurogen.errors import DataError
from neurogen.files import to_json
from neurogen.text.printable import json_printable, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from neurogen.cli.results import Key
    from neurogen.text.generation import Failure, Result, TextDelta

__all__ = [
    "JsonOutput",
    "Output",
    "Summary",
    "TextOutput",
    "Watch",
    "if_slow",
    "loading",
    "status_line",
    "write_stdout",
    "write_text",
]

ERASE_LINE = "\r\x1b[2K"
SLOW_SECONDS = 2.0  # longer than it takes to read kernels that have been compiled


def write_stdout(text: str) -> None:
    """Write at once; a text that the terminal's encoding lacks is written as escapes. Never alters anything else."""
    if sys.stdout is None:  # the shell's `>&-`
        raise DataError("Standard output is closed. Give --output FILE.jsonl, or leave it open.")
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError as error:
            sys.stdout.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"Standard output cannot be written: {error.strerror or error}.") from None


def write_text(text: str) -> None:
    """Write what a model has written at once: as it is to a pipe or a file, with escapes to a terminal."""
    write_stdout(printable(text) if is_terminal(sys.stdout) else text)


class Output:
    """Receives what the runner yields. This one shows nothing: results go to a file alone."""

    def delta(self, delta: TextDelta) -> None:
        """A piece of a sequence's text."""

    def result(self, result: Result) -> None:
        """A finished sequence."""

    def failure(self, failure: Failure) -> None:
        """A prompt without a result, or without some of them."""

    def close(self) -> None:
        """Nothing follows; sequences without a result have failed or were cut off."""


class JsonOutput(Output):
    """One object a sequence, as they finish."""

    def result(self, result: Result) -> None:
        write_stdout(json_printable(to_json(result.to_json(), ascii_only=needs_escapes())) + "\n")


class TextOutput(Output):
    """Texts in the order of prompts and samples, whatever the order in which they finish.

    Args:
        order: the keys that are to come.
        stream: write the first unfinished sequence as it grows; the ones after it wait for their turn.
        terminal: whether a person reads it: with headings where there are several, and harmless.
    """

    def __init__(self, order: Sequence[Key], *, stream: bool, terminal: bool) -> None:
        self._waiting = list(reversed(order))
        self._several = len(order) > 1
        self._stream = stream
        self._terminal = terminal
        self._texts: dict[Key, str] = {}
        self._finished: set[Key] = set()
        self._given_up: set[Key] = set()
        self._written: int | None = None  # of the first in line; None before it has begun
        self._first = True

    def delta(self, delta: TextDelta) -> None:
        if self._stream:
            key = (delta.index, delta.sample)
            self._texts[key] = self._texts.get(key, "") + delta.text
            self._advance()

    def result(self, result: Result) -> None:
        key = (result.index, result.sample)
        self._texts[key] = result.text
        self._finished.add(key)
        if key in self._given_up:  # another sample of its prompt failed and this one did not: next in line
            self._waiting.insert(len(self._waiting) - (self._written is not None), key)
        self._advance()

    def failure(self, failure: Failure) -> None:
        """Wait no longer for the sequence, or for all of the prompt's."""
        index, sample = failure.index, failure.sample
        meant = [key for key in self._waiting if key[0] == index and sample in (None, key[1])]
        for key in [key for key in meant if key not in self._finished]:
            if key == self._waiting[-1]:
                self._end()
            self._waiting.remove(key)
            self._given_up.add(key)
        self._advance()

    def close(self) -> None:
        """Write what waited behind sequences that failed or were cut off."""
        while self._waiting:
            if self._waiting[-1] in self._finished:
                self._advance()
            else:
                self._texts.pop(self._waiting.pop(), None)
                self._end()

    def _advance(self) -> None:
        while self._waiting:
            key = self._waiting[-1]
            finished = key in self._finished
            if finished or (self._stream and self._texts.get(key)):
                self._write(key)
            if not finished:
                return
            self._waiting.pop()
            self._end()
            del self._texts[key]

    def _write(self, key: Key) -> None:
        if self._written is None:
            self._begin(key)
        text = self._texts[key]
        piece = text[self._written or 0 :]
        self._written = len(text)
        if piece:
            write_stdout(printable(piece) if self._terminal else piece)

    def _begin(self, key: Key) -> None:
        if not self._several:
            return
        gap = "" if self._first else "\n"
        self._first = False
        heading = click.style(f"prompt {key[0] + 1}, sample {key[1] + 1}", bold=True) + "\n" if self._terminal else ""
        write_stdout(gap + _colored(heading))

    def _end(self) -> None:
        if self._written is not None:
            write_stdout("\n")
        self._written = None


class Watch:
    """A progress bar on stderr, or nothing where that is no terminal."""

    def __init__(self, *, total: int, done: int, shown: bool) -> None:
        self._progress = _progress() if shown else None
        self._started = time.perf_counter()
        self._tokens = 0
        if self._progress is not None:
            self._task = self._progress.add_task("", total=total, completed=done, speed="")
            self._progress.start()

    def advance(self, tokens: int) -> None:
        """One sequence more is done."""
        self._tokens += tokens
        if self._progress is not None:
            speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
            self._progress.update(self._task, advance=1, speed=f"{speed:,.1f} tokens/s")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Clear the bar away while something else is written to the terminal."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


class Summary:
    """Counts what a run did, for its closing line."""

    def __init__(self, sampler: str, seed: int) -> None:
        self._sampler = sampler
        self._seed = seed
        self._last: Result | None = None
        self._tokens = 0
        self._reasons: Counter[str] = Counter()
        self._started = time.perf_counter()

    @property
    def sequences(self) -> int:
        """How many have finished."""
        return self._reasons.total()

    def add(self, result: Result) -> None:
        """Count a finished sequence."""
        self._last = result
        self._tokens += result.new_tokens
        self._reasons[result.finish_reason] += 1

    def line(self) -> str:
        """The closing line."""
        result = self._last
        if result is not None and self.sequences == 1:
            name = _call(result.sampler, result.params)
            return (
                f"{name} seed {result.seed}: {_tokens(result.new_tokens)} in {result.seconds:.1f} s "
                f"({result.tokens_per_second:.1f} tokens/s), finished by {result.finish_reason}"
            )
        seconds = time.perf_counter() - self._started
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in self._reasons.most_common())
        return (
            f"{self._sampler} seed {self._seed}: {self.sequences:,} sequences, {_tokens(self._tokens)} in "
            f"{seconds:.1f} s ({self._tokens / max(seconds, 1e-9):.1f} tokens/s), finished by {reasons}"
        )


@contextmanager
def loading(model: str, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """Say on a terminal that the model is being loaded, and take it away afterwards.

    A line that does not move: reading a model holds the interpreter for seconds, and converting one shows its own
    progress.

    Yields:
        says something else in the place of that line.
    """
    shown = shown and os.environ.get("TERM") != "dumb"  # a line that cannot be taken away again
    if shown:
        status_line(f"Loading {model} ...")
    try:
        yield lambda message: status_line(message) if shown else None
    finally:
        if shown:
            status_line("")


@contextmanager
def if_slow(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` from another thread if what is done here takes more than a moment."""
    timer = threading.Timer(SLOW_SECONDS, action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def status_line(text: str) -> None:
    """Write a line on stderr in the place of the one that the cursor is on; for terminals."""
    with suppress(OSError):
        sys.stderr.write(ERASE_LINE + printable(text))
        sys.stderr.flush()


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} sequences"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )


def _call(sampler: str, params: Mapping[str, Any]) -> str:
    return f"{sampler}({', '.join(f'{name}={value!r}' for name, value in params.items())})"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _colored(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return click.unstyle(text) if plain else text
