"""Training data as a stream of documents that can be left and resumed at any of them. Knows no tokens.

Rows come from `sources`; this module decides which of them hold a text. The others are counted, reported and skipped:
among millions of rows from the web some are always broken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from neurogen.data.rows import FIELD, PIECE, SourceRow
from neurogen.data.sources import Source, fingerprint, names_and_sizes, resolve
from neurogen.errors import DataError

__all__ = ["BrokenRow", "Piece", "TextStream"]

STATE_VERSION = 2
NAMES_AND_SIZES = 1
"""The version of states that know files by name and size alone."""

BEGINNING: dict[str, Any] = {"part": 0, "position": None, "row": 0, "offset": 0, "documents": 0, "open": False}
"""A position at the beginning of the data.

part: which source. position: in the source, as the datasets library gives it; None is its beginning. row: how many rows
of the source come before. offset: characters of the next row that come before. documents: how many have begun since the
beginning of the data. open: whether the next row continues a document.
"""

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
    In a `.txt` file documents are separated by lines `<|endoftext|>`. A long document comes in several pieces (of about
    64 KiB, cut at line ends), which `pieces` can tell from documents. Files are streamed and never held whole.

    Use it from one thread at a time; `state_dict` between two documents.

    Attributes:
        broken: rows without a text so far. They are reported and counted the first time the data are read, and only
            passed over in later epochs.
        epoch: how many times the data have been read whole.
        piece_start: where the piece that was given out last begins, as `start_at` takes it.
    """

    _at: dict[str, Any]  # where the next piece begins; see `BEGINNING`
    _seen: tuple[int, int]  # source and row up to which broken rows have been reported

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
        self._named = ", ".join(map(str, [sources] if isinstance(sources, str | Path) else sources))
        self._on_broken = on_broken
        self.broken = 0
        self.epoch = 0
        self._begin()
        self.piece_start = self._at

    @cached_property
    def fingerprint(self) -> str:
        """A short name for exactly these data, wherever they lie; samples of the files are read for it, once."""
        return fingerprint(self._sources)

    def __iter__(self) -> Iterator[str]:
        """The texts from here to the end of the data: rows are given out whole, long documents of `.txt` in pieces.

        Raises:
            DataError: there is no text at all in the data, or a data set on the hub cannot be read any further.
        """
        parts: list[str] = []
        for piece in self.pieces():
            parts.append(piece.text)
            if not self._at["offset"]:
                text, parts = "".join(parts), []
                if text:
                    yield text

    def pieces(self) -> Iterator[Piece]:
        """As `__iter__`, but in pieces, and tells where documents end, for which an empty piece may follow the text."""
        while self._at["part"] < len(self._sources):
            yield from self._pieces_of(self._sources[self._at["part"]])
            self._at = self._at | {"part": self._at["part"] + 1, "position": None, "row": 0, "offset": 0}
        if not self._at["documents"]:
            raise DataError(
                f"There is no text to train on in {self._named}: {self._tally()}. A row needs a field {FIELD!r} that "
                "holds some text."
            )
        self.epoch += 1
        self._begin()

    def position(self) -> dict[str, Any]:
        """Where the next piece begins, as JSON values."""
        return self._at

    def start_at(self, position: Mapping[str, Any]) -> None:
        """Go to a position, of `position` or `piece_start`, in the epoch that is being read."""
        self._at = {name: position.get(name, beginning) for name, beginning in BEGINNING.items()}

    def state_dict(self) -> dict[str, Any]:
        """The position after the last piece that was given out, as JSON values."""
        known = {"version": STATE_VERSION, "sources": self.fingerprint, "epoch": self.epoch, "broken": self.broken}
        return {**known, "seen": list(self._seen), **self.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was called; what lies before is not parsed, counted or reported again.

        Raises:
            DataError: it is no such state, or one of other data.
        """
        version = state.get("version")
        needed = self.state_dict().keys() - ({"seen", "offset"} if version == NAMES_AND_SIZES else set())
        if version not in (NAMES_AND_SIZES, STATE_VERSION) or not state.keys() >= needed:
            raise DataError(
                "The saved position in the training data cannot be read: it is damaged, or was saved by another "
                "version of neurogen. Start from another checkpoint, or without one."
            )
        known = names_and_sizes(self._sources) if version == NAMES_AND_SIZES else self.fingerprint
        if state["sources"] != known:
            raise DataError(
                f"The saved position in the training data is one in other data than {self._named}: a file was added, "
                "removed, renamed, or has another content. Give the data that training began with, in the same order, "
                "or start without the checkpoint."
            )
        self.epoch, self.broken = state["epoch"], state["broken"]
        self.start_at(state)
        self._seen = tuple(state["seen"]) if "seen" in state else (self._at["part"], self._at["row"])
        self.piece_start = self._at

    def _begin(self) -> None:
        """Go to the beginning of the data."""
        self._at, self._seen = dict(BEGINNING), (0, 0)

    def _pieces_of(self, source: Source) -> Iterator[Piece]:
        """The pieces of a source, from where the stream stands."""
        dataset = source.dataset()
        if self._at["position"] is not None:
            dataset.load_state_dict(self._at["position"])
        for row in source.rows(dataset, self._at["row"]):
            start = self._at
            text = self._text(row)
            self._seen = max(self._seen, (start["part"], start["row"] + 1))
            following = start | {"position": dataset.state_dict(), "row": start["row"] + 1, "offset": 0}
            if text or (start["open"] and row.ends):
                following |= {"documents": start["documents"] + (not start["open"]), "open": not row.ends}
                if self._select is None or self._select(following["documents"]):
                    yield from self._pieces_of_row(text, row.ends, start, following)
            self._at = following

    def _pieces_of_row(
        self, text: str, ends: bool, start: dict[str, Any], following: dict[str, Any]
    ) -> Iterator[Piece]:
        """The rest of a row's text from the offset of `start`, cut where it is long."""
        begin, end = start["offset"], -1
        while end < len(text):
            end = _cut(text, begin)
            is_last = end == len(text)
            self.piece_start = {**start, "offset": begin}
            self._at = following if is_last else {**start, "offset": end}
            yield Piece(text[begin:end], ends and is_last)
            begin = end

    def _text(self, row: SourceRow) -> str:
        """The row's text; empty for a row without a text, which has then been reported."""
        try:
            if row.kind == "text":
                text = self._decode_lines(row)
                return text if self._at["open"] or not text.isspace() else ""
            return _text_of(row)
        except _NoTextError as error:
            self._report(row, 0, error)
            return ""

    def _decode_lines(self, row: SourceRow) -> str:
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

    def _report(self, row: SourceRow, offset: int, error: _NoTextError) -> None:
        if self.epoch or (self._at["part"], self._at["row"] + 1) <= self._seen:
            return
        self.broken += 1
        if self._on_broken is not None:
            self._on_broken(BrokenRow(row.file, row.line + offset, str(error)))

    def _tally(self) -> str:
        return f"{self.broken:,} broken rows and no other" if self.broken else "it is empty"


def _cut(text: str, begin: int) -> int:
    """Where the piece of a text that begins at `begin` ends: after a line, else before a space, else anywhere."""
    longest = begin + PIECE
    if len(text) <= longest:
        return len(text)
    after_line = text.rfind("\n", begin + PIECE // 2, longest) + 1
    return after_line or max(text.rfind(" ", begin + PIECE // 2, longest), 0) or longest


class _NoTextError(Exception):
    """A row holds no text; the message says why."""


def _text_of(row: SourceRow) -> str:
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
