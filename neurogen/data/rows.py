"""Reads files of training data row by row. What a line or a cell holds is left to `documents`.

A file is never held in memory as a whole. A damaged file ends early with a row that says so, instead of ending the run.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from neurogen.files import BYTE_ORDER_MARK

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["FIELD", "MAX_ROW", "PIECE", "SEPARATOR", "SUFFIXES", "SourceRow", "is_supported", "read_rows"]

SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet", ".txt")
FIELD = "text"
"""The field, or column, that training text is in."""

SEPARATOR = b"<|endoftext|>"
"""A line of a `.txt` file that is exactly this ends a document."""

PIECE = 64 * 1024
"""A document of a `.txt` file comes in pieces of about this many bytes: SentencePiece takes about twice as long for a
token when it gets a megabyte at once."""

MAX_ROW = 64 * 1024 * 1024
"""A longer line, in bytes, is reported as broken: memory is finite, and the file is hardly a file of documents."""

ZST_BLOCK = 8 * 1024  # text becomes about ten times as large, and a block of it all at once
ZST_WINDOW = 2**31
PARQUET_BATCH = 256


class SourceRow(NamedTuple):
    """One row of a file.

    Attributes:
        file: where it is from.
        line: its line, or in a table its row, counted from 1.
        kind: `json`: `data` is the bytes of one line. `text`: bytes of a document's text, which `ends` here or goes on
            in the next row. `value`: what is in the column `text`. `problem`: words that say why there is no row.
        data: see `kind`.
        ends: whether a document ends with this row.
    """

    file: str
    line: int
    kind: Literal["json", "text", "value", "problem"]
    data: Any
    ends: bool = True


class DamagedFileError(OSError):
    """The rest of a file cannot be read."""


def is_supported(path: Path) -> bool:
    """Whether `read_rows` can read a file of this name."""
    return path.name.lower().endswith(SUFFIXES)


def read_rows(files: list[str]) -> Iterator[Mapping[str, SourceRow]]:
    """The rows of `files`, one after the other, each as `{"row": SourceRow}`, as the datasets library wants."""
    for name in files:
        reader = _RowReader(name)
        try:
            for row in reader.rows():
                yield {"row": row}
        except OSError as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            problem = f"the file cannot be read from here on: {cause}"
            yield {"row": SourceRow(name, reader.line + 1, "problem", problem)}


class _RowReader:
    """Reads one file.

    Attributes:
        line: how many lines, or rows of a table, have been read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = 0
        self._begins_line = self._ended_line = True

    def rows(self) -> Iterator[SourceRow]:
        """The rows, in the order of the file.

        Raises:
            OSError: the rest of the file cannot be read.
        """
        suffix = next(suffix for suffix in SUFFIXES if self.name.lower().endswith(suffix))
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(Path(self.name).open("rb"))
            if suffix == ".parquet":
                yield from self._parquet(file)
            elif suffix == ".txt":
                yield from self._text(file)
            else:
                lines = io.BufferedReader(_ZstdReader(file)) if suffix == ".jsonl.zst" else file
                yield from self._json(stack.enter_context(lines))

    def _json(self, file: BinaryIO) -> Iterator[SourceRow]:
        """One row a line; blank lines are skipped."""
        while line := self._read_line(file, MAX_ROW):
            if len(line) >= MAX_ROW and not line.endswith(b"\n"):
                self._skip_line(file)
                yield SourceRow(self.name, self.line, "problem", f"a line of more than {MAX_ROW:,} bytes")
            elif not line.isspace():
                yield SourceRow(self.name, self.line, "json", line)

    def _text(self, file: BinaryIO) -> Iterator[SourceRow]:
        """Documents in pieces. The line break before a separator, or before the end of the file, is not text."""
        piece: list[bytes] = []
        size, start = 0, 1
        while line := self._read_line(file, PIECE):
            if line.rstrip(b"\r\n") == SEPARATOR and self._begins_line:
                yield self._piece(piece, start, ends=True)
                piece, size, start = [], 0, self.line + 1
                continue
            if size + len(line) > PIECE and piece:
                yield self._piece(piece, start, ends=False)
                piece, size, start = [], 0, self.line
            if not line.endswith(b"\n"):
                line += _rest_of_character(file)
            piece.append(line)
            size += len(line)
        yield self._piece(piece, start, ends=True)

    def _piece(self, lines: list[bytes], start: int, *, ends: bool) -> SourceRow:
        text = b"".join(lines)
        if ends and text.endswith(b"\n"):
            text = text[:-1].removesuffix(b"\r")
        return SourceRow(self.name, start, "text", text, ends)

    def _read_line(self, file: BinaryIO, limit: int) -> bytes:
        """The next line, or the next `limit` bytes of a long one; empty at the end of the file."""
        line = file.readline(limit)
        if self.line == 0:
            line = line.removeprefix(BYTE_ORDER_MARK) or file.readline(limit)
        self._begins_line = self._ended_line
        self._ended_line = line.endswith(b"\n")
        self.line += self._begins_line and bool(line)
        return line

    def _skip_line(self, file: BinaryIO) -> None:
        while not self._ended_line and self._read_line(file, PIECE):
            pass

    def _parquet(self, file: BinaryIO) -> Iterator[SourceRow]:
        """One row a cell of the column `text`; cells that hold text are given as bytes, since it may be no UTF-8."""
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet

        # Bound here, since a stream that nobody has finished is closed when the interpreter is half taken down.
        arrow_error = pyarrow.ArrowException
        try:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if FIELD not in names:
                raise DamagedFileError(f"there is no column {FIELD!r}; it has {', '.join(map(repr, names[:8]))}")
            # No threads and no read-ahead: the caller may be one of many readers, and memory is to stay small.
            for batch in table.iter_batches(batch_size=PARQUET_BATCH, columns=[FIELD], use_threads=False):
                for value in _cells(batch.column(0)):
                    self.line += 1
                    yield SourceRow(self.name, self.line, "value", value)
        except arrow_error as error:
            raise DamagedFileError(" ".join(str(error).split())[:200]) from None


def _cells(column: Any) -> list[Any]:
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    if any(is_kind(column.type) for is_kind in kinds):
        column = column.cast(pyarrow.large_binary())
    cells: list[Any] = column.to_pylist()
    return cells


def _rest_of_character(file: BinaryIO) -> bytes:
    """The bytes that a cut through a line leaves of its last UTF-8 character: continuation bytes, at most three."""
    rest = b""
    while len(rest) < 3 and (byte := file.read(1)):
        if byte[0] & 0xC0 != 0x80:
            file.seek(-1, io.SEEK_CUR)
            break
        rest += byte
    return rest


class _ZstdReader(io.RawIOBase):
    """Decompresses a `.zst` file of any number of frames; one that stops within a frame is an error, not an end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` as far as there is something at hand; 0 at the end of the file.

        Raises:
            DamagedFileError: this is not zstd, is damaged, or is cut off.
        """
        while not self._ready:
            if not self._compressed:
                self._compressed = self._file.read(ZST_BLOCK)
            if not self._compressed and self._frame is None:
                return 0
            self._ready = memoryview(self._decompress())
        target = memoryview(buffer)
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bytes:
        import zstandard

        if not self._compressed:
            raise DamagedFileError("the zstd data is cut off; copy the file again from where it came from")
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor(max_window_size=ZST_WINDOW).decompressobj()
        try:
            data: bytes = self._frame.decompress(self._compressed)
        except zstandard.ZstdError as error:
            raise DamagedFileError(f"it is not zstd, or damaged ({error})") from None
        self._compressed = b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return data
