"""Training data as a stream of texts that can be left and taken up again at any document. Knows no tokens.

Rows come from `sources`; this module decides which of them hold a text. What does not is counted, reported and skipped,
since among millions of rows from the web some are always broken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neurogen.errors import DataError
from neurogen.rows import FIELD, Row
from neurogen.sources import Source, fingerprint, resolve

if TYPE_CHECKING:
    from datasets import IterableDataset  # type: ignore[import-untyped]

__all__ = ["BrokenRow", "Piece", "TextStream"]

STATE_VERSION = 1
SHOWN = 40


@dataclass(frozen=True)
class BrokenRow:
    """A row that holds no text.

    Attributes:
        file: the file, or the data set on the hub.
        line: the line, or in a table the row, counted from 1.
        reason: what is wrong with it.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


class Piece(NamedTuple):
    """A document, or a part of a long one.

    Attributes:
        text: may be empty where it only ends a document.
        ends: whether the document ends here; if not, the next piece continues it.
    """

    text: str
    ends: bool


class TextStream:
    """Iterates the texts of training data, from where it stands to the end; the next iteration starts over.

    A row of a `.jsonl`, `.jsonl.zst` or `.parquet` file or of a data set on the hub is one document: its field `text`.
    In a `.txt` file documents are separated by lines `<|endoftext|>`; a long one comes in several pieces (of about
    64 KiB, cut at line ends), which `pieces` can tell from documents. Files are streamed and never held whole.

    Use it from one thread at a time; `state_dict` between two documents.

    Attributes:
        broken: rows without a text so far. They are reported and counted the first time the data are read, and only
            passed over in later epochs.
        epoch: how many times the data have been read whole.
    """

    _part: int  # which source
    _position: dict[str, Any] | None  # where to start in it, once it is opened
    _dataset: IterableDataset | None  # the source that is open, and knows the position itself
    _row: int  # rows of it that are behind us
    _documents: int  # given out since the beginning of the data
    _open: bool  # within a document

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        select: Callable[[int], bool] | None = None,
        on_broken: Callable[[BrokenRow], None] | None = None,
    ) -> None:
        """Find the data.

        Args:
            sources: files, folders (read recursively, in the order of their names), or names on the Hugging Face hub,
                `organisation/name` or `organisation/name:config`.
            select: whether to give out the document of this number, counted from 1 in every epoch; None: all.
            on_broken: called for each row without a text.

        Raises:
            DataError: a source does not exist, is of an unknown kind, or holds nothing to read.
        """
        self._sources = resolve(sources)
        self._select = select
        self._fingerprint = fingerprint(self._sources)
        self._named = ", ".join(map(str, [sources] if isinstance(sources, str | Path) else sources))
        self._on_broken = on_broken
        self.broken = 0
        self.epoch = 0
        self._begin()

    def __iter__(self) -> Iterator[str]:
        """The texts from here to the end of the data.

        Raises:
            DataError: there is no text at all in the data, or a data set on the hub cannot be read any further.
        """
        return (piece.text for piece in self.pieces() if piece.text)

    def pieces(self) -> Iterator[Piece]:
        """As `__iter__`, but tells where documents end, for which an empty piece may follow the text."""
        self._position, self._dataset = self._current_position(), None
        while self._part < len(self._sources):
            yield from self._pieces_of(self._sources[self._part])
            self._part, self._row, self._position, self._dataset = self._part + 1, 0, None, None
        if not self._documents:
            raise DataError(
                f"There is no text to train on in {self._named}: {self._tally()}. A row needs a field {FIELD!r} that "
                "holds some text."
            )
        self.epoch += 1
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last document that was given out, as what JSON can hold."""
        return {
            "version": STATE_VERSION,
            "sources": self._fingerprint,
            "epoch": self.epoch,
            "part": self._part,
            "position": self._current_position(),
            "row": self._row,
            "documents": self._documents,
            "open": self._open,
            "broken": self.broken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called; what lies before is not parsed, counted or reported again.

        Raises:
            DataError: it is no such state, or one of other data.
        """
        if state.get("version") != STATE_VERSION or not state.keys() >= self.state_dict().keys():
            raise DataError(
                "The saved position in the training data cannot be read: it is damaged, or was saved by another "
                "version of neurogen. Start from another checkpoint, or without one."
            )
        if state["sources"] != self._fingerprint:
            raise DataError(
                f"The saved position in the training data is one in other data than {self._named}: a file was added, "
                "removed, renamed, or has another size. Give the data that training began with, in the same order, or "
                "start without the checkpoint."
            )
        self.epoch, self.broken, self._documents = state["epoch"], state["broken"], state["documents"]
        self._part, self._position, self._row = state["part"], state["position"], state["row"]
        self._open, self._dataset = state["open"], None

    def _begin(self) -> None:
        """Stand at the beginning of the data."""
        self._part, self._row, self._documents = 0, 0, 0
        self._position = self._dataset = None
        self._open = False

    def _current_position(self) -> dict[str, Any] | None:
        position: dict[str, Any] | None = self._position if self._dataset is None else self._dataset.state_dict()
        return position

    def _pieces_of(self, source: Source) -> Iterator[Piece]:
        dataset = source.dataset()
        if self._position is not None:
            dataset.load_state_dict(self._position)
        self._dataset = dataset
        for row in source.rows(dataset, self._row):
            self._row += 1
            text = self._text(row)
            if text or (self._open and row.ends):
                self._documents += not self._open
                self._open = not row.ends
                if self._select is None or self._select(self._documents):
                    yield Piece(text, row.ends)

    def _text(self, row: Row) -> str:
        """The row's text; empty where it has none, which has then been reported."""
        try:
            if row.kind == "text":
                text = self._decode_lines(row)
                return text if self._open or not text.isspace() else ""
            return _text_of(row)
        except _NoTextError as error:
            self._report(row, 0, error)
            return ""

    def _decode_lines(self, row: Row) -> str:
        """The text of a piece of a `.txt` file, less the lines that are not UTF-8."""
        try:
            return str(row.data, "utf-8")
        except UnicodeDecodeError:
            pass
        kept = []
        for offset, line in enumerate(row.data.split(b"\n")):
            try:
                kept.append(_decode(line))
            except _NoTextError as error:
                self._report(row, offset, error)
        return "\n".join(kept)

    def _report(self, row: Row, offset: int, error: _NoTextError) -> None:
        if self.epoch:
            return
        self.broken += 1
        if self._on_broken is not None:
            self._on_broken(BrokenRow(row.file, row.line + offset, str(error)))

    def _tally(self) -> str:
        return f"{self.broken:,} broken rows and no other" if self.broken else "it is empty"


class _NoTextError(Exception):
    """A row holds no text; the message says why."""


def _text_of(row: Row) -> str:
    if row.kind == "problem":
        raise _NoTextError(row.data)
    value = _field(row.data) if row.kind == "json" else row.data
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise _NoTextError(f"{FIELD!r} must be a text, got {_shown(value)}")
    if not value or value.isspace():
        raise _NoTextError("the text is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _NoTextError(f"the text holds {value[error.start]!r}, half of a character, at {error.start}") from None
    return value


def _field(line: bytes) -> Any:
    try:
        fields = json.loads(_decode(line))
    except (ValueError, RecursionError) as error:
        raise _NoTextError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _NoTextError(f"a row must be a JSON object with a field {FIELD!r}, got {_shown(fields)}")
    if FIELD not in fields:
        has = f"it has {', '.join(map(repr, list(fields)[:8]))}" if fields else "it has no field"
        raise _NoTextError(f"there is no field {FIELD!r}; {has}")
    return fields[FIELD]


def _decode(data: bytes) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise _NoTextError(f"not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
