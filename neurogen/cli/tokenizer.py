"""`neurogen tokenizer train`: its options, progress on a terminal, and the closing line."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from neurogen.cli.common import WholeNumber, debug_option, duration, echo, is_terminal, write_json
from neurogen.cli.output import status_line
from neurogen.cli.ranks import check_single
from neurogen.data.documents import BrokenRow
from neurogen.data.tokenizer_training import DEFAULT_SENTENCES, LEAST_COVERAGE, MODEL_TYPES, train_tokenizer

__all__ = ["command"]

BROKEN_SHOWN = 10
DATA_HELP = """
    DATA are files (.jsonl, .jsonl.zst, .parquet: the field `text`; .txt: documents separated by lines <|endoftext|>),
    folders of them, or data sets on the Hugging Face hub as organisation/name[:config]. They are streamed.
"""


@click.group("tokenizer")
@debug_option
def command() -> None:
    """Make a tokenizer."""


@command.command("train", help=f"Train a SentencePiece tokenizer on DATA.\n{DATA_HELP}")
@click.argument("data", nargs=-1, required=True)
@click.option("--vocab-size", type=WholeNumber(1), default=32_000, show_default=True, help="Number of pieces.")
@click.option("--out", metavar="FILE.model", required=True, help="The file to write.")
@click.option(
    "--model-type", type=click.Choice(MODEL_TYPES), default="bpe", show_default=True, help="How pieces are found."
)
@click.option(
    "--character-coverage",
    type=click.FloatRange(LEAST_COVERAGE, 1),
    default=0.9999,
    show_default=True,
    help="Share of the characters that get a piece of their own; others are spelled in bytes.",
)
@click.option(
    "--max-sentences",
    type=WholeNumber(1),
    metavar="N",
    default=DEFAULT_SENTENCES,
    show_default=True,
    help="Learn from the first N lines at most; they are held in memory.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the closing line.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no closing line.")
@debug_option
def train(data: tuple[str, ...], out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    check_single(click.get_current_context())
    shown = not quiet and is_terminal(sys.stderr)
    with _Watch(shown=shown, most=options["max_sentences"]) as watch:
        trained = train_tokenizer(data, out=out, on_broken=watch.broken, on_progress=watch.progress, **options)
    if as_json:
        write_json({**asdict(trained), "path": str(trained.path)})
    elif not quiet:
        lines = f"{trained.lines:,} lines" if trained.whole else f"the first {trained.lines:,} lines"
        echo(f"{trained.path}: {trained.vocab_size:,} pieces, learnt from {lines}.")


class _Watch:
    """Reports on stderr: rows without a text and, on a terminal, one line of progress.

    While SentencePiece learns, Ctrl-C ends the program at once, since Python's own handler would only run afterwards.
    Nothing has been written by then. The line does not move by itself: one that does hides the cursor, which a program
    that is ended in this way cannot show again.
    """

    def __init__(self, *, shown: bool, most: int) -> None:
        self._shown = shown
        self._most = most
        self._started = time.monotonic()
        self._broken = 0
        self._handler: Any = None

    def __enter__(self) -> _Watch:
        self._show("Reading ...")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._show("")
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
        if self._broken > BROKEN_SHOWN:
            echo(f"{self._broken - BROKEN_SHOWN:,} more rows hold no text.", err=True)

    def broken(self, row: BrokenRow) -> None:
        """Name the first rows without a text, and count the others."""
        self._broken += 1
        if self._broken <= BROKEN_SHOWN:
            self._show("")
            echo(f"{row}.", err=True)

    def progress(self, lines: int, whole: bool) -> None:
        """Tell how far the reading is, and when the learning begins."""
        self._show(
            f"Learning from {lines:,} lines ..." if whole else f"Reading: {lines:,} lines{self._left(lines)} ..."
        )
        if whole:
            with suppress(ValueError):  # signals are the main thread's
                self._handler = signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _left(self, lines: int) -> str:
        """How long the reading takes at most: it ends with the data, or after as many lines as are learnt from."""
        seconds = (time.monotonic() - self._started) / max(lines, 1) * (self._most - lines)
        return f" of {self._most:,} at most, {duration(seconds)} left at most" if lines else ""

    def _show(self, text: str) -> None:
        if self._shown:
            status_line(text)
