"""The files of a training run: lines that are written at once and cut back on resume, and the lock of the folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neurogen.errors import DataError

__all__ = ["append_line", "cut_behind", "locked", "write_json"]


def locked(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise DataError(f"Another process is training in {folder}. Wait for it, or choose another folder.") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be used for a training run: {error.strerror or error}.") from None
    return lock


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror or error}.") from None


def cut_behind(file: Path, chunk: int) -> None:
    """Leave the lines up to a chunk; those behind it are trained, and written, again."""
    if not file.is_file():
        return
    kept = [line for line in file.read_bytes().splitlines(keepends=True) if _chunk_of(line) <= chunk]
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(file)


def _chunk_of(line: bytes) -> float:
    """The chunk of a line; a line that a crash cut short is behind everything."""
    try:
        return int(json.loads(line)["chunk"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
