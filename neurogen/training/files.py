"""The files of a training run: lines that are written at once and cut back on resume, and the lock of the folder."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neurogen.errors import DataError
from neurogen.files import append_line, replacing, to_json, write_text, writing

__all__ = [
    "IDENTITY",
    "METRICS_FILE",
    "SAMPLES_FILE",
    "TOKENIZER_FOLDER",
    "append_report",
    "check_folder",
    "cut_behind",
    "locked",
    "remove_begun",
    "write_options",
]

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TOKENIZER_FOLDER = "tokenizer"
LOCK_FILE = ".lock"
IDENTITY = "identity"
"""In the options' file: names for the contents of `data` and `val`; see `sources.fingerprint`."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made or written, without making it.

    Raises:
        DataError: it is a file, lies below one, or nothing may be written there.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        problem = f"{place} is a file"
    elif not os.access(place, os.W_OK):
        problem = f"nothing may be written in {place}"
    else:
        return
    raise DataError(f"{folder} cannot be used for a training run: {problem}. Give another folder.")


def locked(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0)
        lock.acquire()
    except Timeout:
        raise DataError(f"Another process is training in {folder}. Wait for it, or choose another folder.") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be used for a training run: {error.strerror or error}.") from None
    return lock


def remove_begun(folder: Path) -> None:
    """Remove a folder that this process has made and locked for a run that could not begin; nothing else in it."""
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    with suppress(OSError):  # another has put something there meanwhile
        (folder / LOCK_FILE).unlink(missing_ok=True)
        folder.rmdir()


def append_report(file: Path, values: Mapping[str, Any]) -> None:
    """Add a line to the metrics or the samples.

    Raises:
        DataError: it cannot be written; the file is as it was.
    """
    append_line("The training's report", file, to_json(values, ascii_only=True))


def cut_behind(file: Path, chunk: int) -> None:
    """Leave the lines up to a chunk; those behind it are trained, and written, again."""
    if not file.is_file():
        return
    kept = [line for line in file.read_bytes().splitlines(keepends=True) if _chunk_of(line) <= chunk]
    with writing("The training's report", file), replacing(file) as draft:
        draft.write_bytes(b"".join(kept))


def _chunk_of(line: bytes) -> float:
    """The chunk of a line; a line that a crash cut short is behind everything."""
    try:
        return int(json.loads(line)["chunk"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def write_options(file: Path, values: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    """Keep what a run was asked to do, and names for the contents of its data, for --resume.

    Raises:
        DataError: it cannot be written.
    """
    text = to_json({**values, IDENTITY: identity}, indent=2, ascii_only=True)
    write_text("The training's options", file, text + "\n")
