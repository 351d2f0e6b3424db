"""The output of a run: texts or JSON on stdout; progress, closing line and problems on stderr. Knows no model."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import is_terminal, needs_escapes
from neurogen.errors import DataError
from neurogen.files import to_json
from neurogen.text.printable import json_printable, printable

if TYPE_CHECKING:
    from neurogen.cli.arguments import Arguments
    from neurogen.cli.results import Key
    from neurogen.text.generation import Failure, Result, TextDelta

__all__ = [
    "JsonOutput",
    "Output",
    "Progress",
    "Summary",
    "TextOutput",
    "count_of",
    "display",
    "loading",
    "status_line",
    "write_stdout",
    "write_text",
]

ERASE_LINE = "\r\x1b[2K"


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
        self._waiting = deque(order)
        self._several = len(order) > 1
        self._stream = stream
        self._terminal = terminal
        self._texts: dict[Key, str] = {}
        self._finished: set[Key] = set()
        self._failed: set[Key] = set()
        self._written: int | None = None  # characters of the first in line; None before it has begun
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
        if key not in self._waiting:  # other samples of its prompt failed and this one did not: next in line
            self._waiting.insert(0 if self._written is None else 1, key)
        self._advance()

    def failure(self, failure: Failure) -> None:
        """Wait no longer for the sequence, or for all of the prompt's."""
        index, sample = failure.index, failure.sample
        self._give_up(key for key in self._waiting if key[0] == index and sample in (None, key[1]))

    def close(self) -> None:
        """Write what waited for sequences that failed or were cut off."""
        self._give_up(self._waiting)

    def _give_up(self, keys: Iterable[Key]) -> None:
        self._failed.update(key for key in keys if key not in self._finished)
        self._advance()

    def _advance(self) -> None:
        """Write what is certain of the first in line, and take away those that have ended."""
        while self._waiting:
            key = self._waiting[0]
            is_finished = key in self._finished
            if is_finished or (self._stream and self._texts.get(key) and key not in self._failed):
                self._write(key)
            if not is_finished and key not in self._failed:
                return
            self._waiting.popleft()
            self._texts.pop(key, None)
            if self._written is not None:
                write_stdout("\n")
            self._written = None

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
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        write_stdout(gap + (click.unstyle(heading) if plain else heading))


class Progress:
    """A progress bar on stderr, or nothing where that is no terminal."""

    def __init__(self, *, total: int, done: int, shown: bool) -> None:
        self._bar = _progress_bar() if shown else None
        self._started = time.perf_counter()
        self._tokens = 0
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total, completed=done, speed="")
            self._bar.start()

    def advance(self, tokens: int) -> None:
        """One sequence more is done."""
        self._tokens += tokens
        if self._bar is not None:
            speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
            self._bar.update(self._task, advance=1, speed=f"{speed:,.1f} tokens/s")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Clear the bar away while something else is written to the terminal."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _progress_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} sequences"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)


@contextmanager
def display(arguments: Arguments, todo: Sequence[Key], done: int) -> Iterator[tuple[Output, Progress]]:
    """Where results are shown, and how far the run is; closed whatever happens.

    Args:
        arguments: say what is shown where.
        todo: the keys that are to come.
        done: how many are there already.
    """
    streams = arguments.stream if arguments.stream is not None else len(todo) == 1
    output, grows = Output(), False
    if arguments.as_json:
        output = JsonOutput()
    elif arguments.output is None or arguments.stream:
        output = TextOutput(todo, stream=streams, terminal=is_terminal(sys.stdout))
        grows = streams and is_terminal(sys.stdout)  # then no bar beside the text
    progress = Progress(total=len(todo) + done, done=done, shown=arguments.shows_progress and not grows)
    is_read = True
    try:
        yield output, progress
    except BrokenPipeError:
        is_read = False
        raise
    finally:
        progress.close()
        if is_read:
            output.close()


class Summary:
    """Counts what a run did, for its closing line."""

    def __init__(self) -> None:
        self._last: Result | None = None
        self._tokens = 0
        self._reasons: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Decoding begins now."""
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

    def line(self, sampler: str, seed: int) -> str:
        """The closing line.

        Args:
            sampler, seed: the run's, for several sequences; a single one names its own.
        """
        result = self._last
        if result is not None and self.sequences == 1:
            params = ", ".join(f"{name}={value!r}" for name, value in result.params.items())
            return (
                f"{result.sampler}({params}) seed {result.seed}: {count_of(result.new_tokens, 'token')} in "
                f"{result.seconds:.1f} s ({result.tokens_per_second:.1f} tokens/s), finished by {result.finish_reason}"
            )
        seconds = time.perf_counter() - self._started
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in self._reasons.most_common())
        return (
            f"{sampler} seed {seed}: {self.sequences:,} sequences, {count_of(self._tokens, 'token')} in "
            f"{seconds:.1f} s ({self._tokens / max(seconds, 1e-9):.1f} tokens/s), finished by {reasons}"
        )


@contextmanager
def loading(model: str, *, shown: bool) -> Iterator[None]:
    """Say on a terminal that the model is being loaded, and take it away afterwards.

    A line that does not move: reading a model holds the interpreter for seconds, and converting one shows its own
    progress.
    """
    shown = shown and os.environ.get("TERM") != "dumb"  # a line that cannot be taken away again
    if shown:
        status_line(f"Loading {model} ...")
    try:
        yield
    finally:
        if shown:
            status_line("")


def status_line(text: str) -> None:
    """Replace the line that the cursor is on, on stderr; for terminals."""
    with suppress(OSError):
        sys.stderr.write(ERASE_LINE + printable(text))
        sys.stderr.flush()


def count_of(count: int, noun: str) -> str:
    """A number and what is counted: "1 token", "2,000 tokens"."""
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"
