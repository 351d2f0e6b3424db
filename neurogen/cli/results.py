"""The results file that a run appends to and that a repeated run continues: no line is lost, no line doubled.

Every line is one result with what identifies its run. A line is written in one piece and ends with a line break, so
after a crash at most the last one is incomplete. It is dropped, or completed if only its end is missing, once all
other lines have turned out to belong to the run that goes on: until then nothing in the file is changed. Knows nothing
about models, and nothing about what a run shows.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from neurogen.errors import DataError
from neurogen.files import append, replacing, to_json, write_problem, writing

__all__ = ["Key", "ResultsFile"]

Key = tuple[int, int]
"""(index of the prompt, number of the sample)."""

Identity = Callable[[Key], Mapping[str, Any] | None]
"""The fields that the line of a key must have in this run, a field that is itself a mapping being compared by its own
fields; None where the run has no such key."""

BEGINNING = b'{"index": 0, "sample": 0, "prompt": "'
"""How every line begins, whatever its numbers."""

SURE = len(b'{"index": 0, "sample": ')
"""An incomplete line that is alone in a file must have at least this many bytes to be recognised as ours."""

FULL = "Free some space, and repeat the command to go on: the results so far are there."
SYNC_SECONDS = 1.0
SHOWN = 60


class ResultsFile:
    """Results of one run, in a file that no other run writes to until it is closed.

    Args:
        path: a file of results of an earlier, interrupted run, or one that does not exist yet.
        rank: the number of this process, if several write the file together. Rank 0 opens it first, resumes it, and
            sorts it when all have finished; the others only append. None: there is one process.

    Attributes:
        path: as given.

    Raises:
        DataError: it cannot be written, another run is writing it, or it holds something else than results. What
            is in such a file is left alone.
    """

    def __init__(self, path: str | os.PathLike[str], *, rank: int | None = None) -> None:
        self.path = Path(path)
        self._place = self.path.resolve()
        self._synced = time.monotonic()
        self._descriptor = -1
        self._lines: list[tuple[int, dict[str, Any]]] = []
        self._whole = 0  # bytes of whole lines
        self._lacks_break = False  # the last of them ends without a line break
        self._lock = FileLock(f"{self._place}.lock", timeout=0)
        self._turn = None if rank is None else FileLock(f"{self._place}.turn")
        if not rank:
            self._acquire()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            if not rank:
                self._read()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._unusable(error) from None
            raise

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def seed(self) -> int | None:
        """The seed of the run that began this file; None where it holds no line."""
        return self._lines[0][1]["run"]["seed"] if self._lines else None

    def resume(self, identity: Identity) -> set[Key]:
        """Make sure that the lines in the file belong to this run; it can be appended to afterwards.

        Args:
            identity: what the line of each key must have.

        Returns:
            the keys that are done.

        Raises:
            DataError: a line differs; the message says where and in what.
        """
        done: set[Key] = set()
        for number, line in self._lines:
            key = (line["index"], line["sample"])
            if key in done:
                raise self._foreign(number, f"it repeats the result of {_named(key)}")
            expected = identity(key)
            if expected is None:
                raise self._foreign(number, f"it is the result of {_named(key)}, and this run has no such sequence")
            difference = _difference(line, expected)
            if difference:
                raise self._foreign(number, difference)
            done.add(key)
        self._lines.clear()
        self._mend()
        self._take_over(identity, done)
        return done

    def append(self, result: Mapping[str, Any]) -> None:
        """Write one result, which begins with `index`, `sample` and `prompt`, as one line.

        Raises:
            DataError: it cannot be written, for example because the disk is full.
        """
        line = to_json(result).encode() + b"\n"
        assert _shape(line).startswith(BEGINNING), "what an incomplete line is known by"
        with writing(None, self.path, needed=len(line), advice=FULL), self._turn or nullcontext():
            if self._turn is not None:
                self._drop_what_is_cut()
            append(self._descriptor, line)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()

    def count(self) -> int:
        """How many results there are, those of other processes included."""
        with self.path.open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    def sort(self) -> int:
        """Put the lines in the order of prompts and samples, when all processes have finished.

        Returns:
            how many there are.

        Raises:
            DataError: the file cannot be written; it is as it was.
        """
        lines = sorted(self.path.read_bytes().split(b"\n")[:-1], key=_key_of)
        data = b"".join(line + b"\n" for line in lines)
        advice = "Free some space, and repeat the command: nothing is lost."
        with writing(None, self.path, needed=len(data), advice=advice), replacing(self.path) as draft:
            draft.write_bytes(data)
        if self._turn is not None:
            Path(self._turn.lock_file).unlink(missing_ok=True)
        return len(lines)

    def close(self) -> None:
        """Bring everything to disk and let other processes have the file. May be called twice."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._sync()
            os.close(self._descriptor)
            self._descriptor = -1
        if self._lock.is_locked:
            with suppress(OSError):
                Path(self._lock.lock_file).unlink()  # while it is ours; a process that waits for it makes a new one
            self._lock.release()

    def _acquire(self) -> None:
        if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
            raise DataError(f"{self.path} is not a regular file. Results for a pipe are what --json prints.")
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path} cannot be written: there is no folder {self.path.parent}. Make it first.")
        try:
            self._lock.acquire()
        except Timeout:
            if not Path(self._lock.lock_file).exists():  # nobody holds it: a file system that makes no files
                raise DataError(
                    f"{self.path} cannot be written: no file can be made in {self.path.parent}. Choose another folder."
                ) from None
            raise DataError(
                f"{self.path} is being written by another process. Wait until it has finished, or choose another file."
            ) from None
        except OSError as error:
            raise self._unusable(error) from None

    def _read(self) -> None:
        whole = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                ended = line.endswith(b"\n")
                if ended or _is_json(line):
                    self._lines.append((number, self._parsed(number, line)))
                    whole += len(line)
                    self._lacks_break = not ended
                elif not _is_cut_short(line, alone=number == 1):
                    raise self._foreign(number, "it is no result")
        self._whole = whole

    def _mend(self) -> None:
        """Drop an incomplete last line, or give it the line break that it lacks."""
        try:
            if self._whole < os.fstat(self._descriptor).st_size:
                os.ftruncate(self._descriptor, self._whole)
            if self._lacks_break:
                os.write(self._descriptor, b"\n")
                self._lacks_break = False
        except OSError as error:
            raise self._unusable(error) from None

    def _drop_what_is_cut(self) -> None:
        """Drop an incomplete last line: another process was killed while it wrote it."""
        with self.path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read() in (b"", b"\n"):
                return
        os.ftruncate(self._descriptor, self.path.read_bytes().rfind(b"\n") + 1)

    def _take_over(self, identity: Identity, done: set[Key]) -> None:
        """Append what several processes of version 0.1 have left in files of their own, and remove those."""
        pattern = re.compile(re.escape(self._place.name) + r"\.(turn|rank\d+(|\.alive|\.done|\.draft|\.lock))")
        beside = sorted(path for path in self._place.parent.iterdir() if pattern.fullmatch(path.name))
        for path in (path for path in beside if path.suffix.startswith(".rank")):
            with ResultsFile(path) as file:
                lines = [line for _, line in file._lines]
                file.resume(identity)
            for line in lines:
                if (line["index"], line["sample"]) not in done:
                    self.append(line)
                    done.add((line["index"], line["sample"]))
        if beside:
            self._sync()
        for path in beside:
            path.unlink(missing_ok=True)

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
            whole = [value["index"], value["sample"], value["run"]["seed"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = [None]
        if not all(isinstance(entry, int) for entry in whole):
            raise self._foreign(number, "it is no result of a run with --output, or is damaged")
        return value  # type: ignore[no-any-return]

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def _foreign(self, number: int, problem: str) -> DataError:
        return DataError(
            f"{self.path} cannot be continued: line {number} does not belong to this run, {problem}. Repeat the "
            "command that wrote the file to go on with it, or choose another file."
        )

    def _unusable(self, error: OSError) -> DataError:
        return DataError(f"{self.path} cannot be written: {write_problem(error, self.path)}.")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_cut_short(line: bytes, *, alone: bool) -> bool:
    """Whether an incomplete line can be the beginning of a result; if it is `alone`, a few bytes are not enough."""
    shape = _shape(line)
    if alone and len(shape) < SURE:
        return False
    return BEGINNING.startswith(shape) or shape.startswith(BEGINNING)


def _shape(line: bytes) -> bytes:
    """How a line begins, with 0 for its numbers."""
    return re.sub(rb"(?<=: )\d+", b"0", line[: 4 * len(BEGINNING)])


def _key_of(line: bytes) -> Key:
    value = json.loads(line)
    return value["index"], value["sample"]


def _named(key: Key) -> str:
    return f"prompt {key[0] + 1}, sample {key[1] + 1}"


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first field in which a line differs, in words; None if no field differs."""
    for name, value in expected.items():
        other = found.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            problem = _difference(other, value)
            if problem:
                return problem
        elif other != value:
            return f"its {name.replace('_', ' ')} is {_shown(other)} and this run's is {_shown(value)}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
