"""The folder of a training run: its files, its lock, and when a folder is refused. Knows no model and no data.

RUN/
    training.json    the options, kept for --resume
    tokenizer/       a copy of the tokenizer
    metrics.jsonl    a line a chunk
    samples.jsonl    a line a chunk: what the model predicted for a piece of it
    checkpoints/     see `checkpoint`
"""

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
from neurogen.files import append_line, check_place, to_json, write_bytes, write_text
from neurogen.models.checkpoints import FOLDER, checkpoints_of, latest_checkpoint

__all__ = ["METRICS_FILE", "OPTIONS_FILE", "SAMPLES_FILE", "RunFolder", "resume_advice"]

OPTIONS_FILE = "training.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TOKENIZER_FOLDER = "tokenizer"
LOCK_FILE = ".lock"


class RunFolder:
    """The folder of a run. With several processes, one of them locks and writes it.

    Attributes:
        path: the folder.
        options_file, metrics, samples, tokenizer: what is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.options_file, self.tokenizer = path / OPTIONS_FILE, path / TOKENIZER_FOLDER
        self.metrics, self.samples = path / METRICS_FILE, path / SAMPLES_FILE
        self._lock: FileLock | None = None
        self._is_new = False

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that could not be made or written, or holds another run. Nothing is written.

        Raises:
            DataError: it is a file, lies below one, nothing may be written there, or it holds files of another run.
        """
        place = self.path.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise _unusable(self.path, f"{place} is a file. Give another folder.")
        if not os.access(place, os.W_OK):
            raise _unusable(self.path, f"nothing may be written in {place}. Give another folder.")
        files = (self.metrics, self.samples, self.options_file) if self.path.is_dir() else ()
        for file in files:
            check_place(f"The training's {file.name}", file)
        if resume:
            return
        remains = [file.name for file in (self.metrics, self.samples) if file.is_file()]
        remains += [checkpoint.name for checkpoint in checkpoints_of(self.path)[-1:]]
        if remains:
            raise DataError(
                f"{self.path} holds {', '.join(remains)} of another run, but not its {OPTIONS_FILE}. Choose another "
                "folder, or remove what is in this one."
            )

    def lock(self) -> None:
        """Lock the folder for this process, and remove unfinished checkpoints of processes that were killed.

        Raises:
            DataError: another process trains in it, or it cannot be made.
        """
        self._is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK_FILE, timeout=0)
            lock.acquire()
        except Timeout:
            raise DataError(
                f"Another process is training in {self.path}. Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            raise _unusable(self.path, f"{error.strerror or error}.") from None
        self._lock = lock
        for draft in (self.path / FOLDER).glob(".chunk-*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)

    def close(self) -> None:
        """Let others train in the folder. One that was made for a run that could not begin is removed."""
        if self._lock is None:
            return
        if self._is_new and not self.options_file.exists():
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            with suppress(OSError):  # another has put something there meanwhile
                (self.path / LOCK_FILE).unlink(missing_ok=True)
                self.path.rmdir()
        self._lock.release()

    def begin(self, options: Mapping[str, Any], chunk: int) -> None:
        """Write the options, and leave the lines up to a chunk; those after it are trained, and written, again.

        Raises:
            DataError: a file cannot be written.
        """
        write_text("The training's options", self.options_file, to_json(options, indent=2, ascii_only=True) + "\n")
        for file in (self.metrics, self.samples):
            if file.is_file():
                kept = [line for line in file.read_bytes().splitlines(keepends=True) if _chunk_of(line) <= chunk]
                write_bytes("The training's report", file, b"".join(kept))

    def write_chunk(self, metrics: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
        """Add the lines of a chunk.

        Raises:
            DataError: they cannot be written; the file is as it was.
        """
        for file, values in ((self.metrics, metrics), (self.samples, sample)):
            append_line("The training's report", file, to_json(values, ascii_only=True))


def resume_advice(run: Path) -> str:
    """A sentence that says from where a run can be resumed."""
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return f"There is no checkpoint in {run} yet: --resume begins the run anew."
    return f"The last checkpoint, {checkpoint}, is intact: --resume goes on from it."


def _chunk_of(line: bytes) -> float:
    """The chunk of a line; a line that a crash cut short comes after all of them."""
    try:
        return int(json.loads(line)["chunk"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _unusable(folder: Path, problem: str) -> DataError:
    return DataError(f"{folder} cannot be used for a training run: {problem}")
