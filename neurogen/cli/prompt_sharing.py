"""Several processes that share the prompts of one run, as torchrun and accelerate launch start them.

Each takes every world-th line and writes a file of its own beside the output; rank 0 waits for the others and merges.
Files and locks are all they have in common: no process group, no torch, no command line.

A rank holds the lock OUT.rankN.alive while it runs, and makes OUT.rankN.done when it has finished. It removes a
`.done` that an earlier run has left before it takes that lock; so where the lock is held, `.done` is of this run.
Rank 0 removes it once the results are merged, which is what the others wait for: a launcher ends all when one fails.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neurogen.cli.results import Key, ResultsFile
from neurogen.errors import DataError, ParameterError
from neurogen.files import read_text, replacing, to_json, write_text, writing

__all__ = ["Gathered", "Ranks", "adopt", "rank_and_world"]

Identity = Callable[[Key], Mapping[str, Any] | None]

POLL_SECONDS = 0.1
TAKE_SECONDS = 10.0
"""Another process holds a lock for a moment when it looks whether it is held."""

BEGIN_SECONDS = 300.0
"""How long a process that has finished waits for one that has not begun, or has ended before anybody looked."""


def rank_and_world(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """What RANK and WORLD_SIZE say; None where they name no launch of several processes.

    Raises:
        ParameterError: they contradict each other.
    """
    rank, world = environment.get("RANK"), environment.get("WORLD_SIZE")
    if rank is None or world in (None, "1"):
        return None
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise ParameterError(
            f"The environment has RANK={rank} and WORLD_SIZE={world}. A launcher such as torchrun sets RANK to an "
            "integer >= 0 and below WORLD_SIZE; unset both to run a single process.",
            "RANK",
        )
    return int(rank), int(world)


@dataclass
class Gathered:
    """What the processes of a run have done.

    Attributes:
        results: how many are in the output.
        failed: keys that other processes than rank 0 could not run.
        told: what those processes have to say, as (line, message), in the order of lines.
    """

    results: int
    failed: set[Key] = field(default_factory=set)
    told: list[tuple[int, str]] = field(default_factory=list)


class Ranks:
    """This process's share of a run.

    Args:
        rank: which process, from 0.
        world: how many there are.
        output: where all results are to be in the end.

    Attributes:
        rank, world: as given.
        own: the file that this process writes.
        told: what rank 0 is to say for this process, as (line, message).
    """

    def __init__(self, rank: int, world: int, output: str | os.PathLike[str]) -> None:
        self.rank, self.world = rank, world
        self.told: list[tuple[int, str]] = []
        self._output = Path(os.path.realpath(output))
        self.own = _rank_file(self._output, rank)
        self._alive = FileLock(f"{self.own}.alive")

    def mine(self, index: int) -> bool:
        """Whether a line is this process's."""
        return index % self.world == self.rank

    def begin(self) -> None:
        """Let the others know that this process runs; its own file is locked by now.

        Raises:
            DataError: the same rank runs already.
        """
        self._done(self.rank).unlink(missing_ok=True)
        try:
            self._alive.acquire(timeout=TAKE_SECONDS)
        except Timeout:
            raise DataError(f"{self.own} is being written by another run. Wait until it has finished.") from None

    def close(self) -> None:
        """Let the others know that this process has ended."""
        if self._alive.is_locked:
            Path(self._alive.lock_file).unlink(missing_ok=True)
            self._alive.release()

    def done_elsewhere(self, identity: Identity) -> set[Key]:
        """Keys of this process whose results are in other files, of runs with another number of processes.

        Lines that do not belong to this run do not count: the process whose file they are in refuses them, and rank 0
        those of ranks that there are no longer.

        Raises:
            DataError: a file of a rank that there is no longer holds other lines, or is being written.
        """
        if self.rank == 0:
            for rank, path in _rank_files(self._output).items():
                if rank >= self.world:
                    _check(path, identity)
        others = [path for path in self._files() if path != self.own]
        lines = (place for path in others for place in _lines(path) if self.mine(place.key[0]))
        return {line.key for line in lines if _belongs(line.value, identity(line.key))}

    def count(self) -> int:
        """How many results there are so far, in all files."""
        return len({line.key for path in self._files() for line in _lines(path)})

    def wait(self, failed: Iterable[Key]) -> None:
        """Say that this process, which is not rank 0, has finished, and wait until its results are merged.

        Args:
            failed: keys that it could not run.

        Raises:
            DataError: rank 0 has ended before that.
        """
        done = self._done(self.rank)
        write_text("The report of this process", done, to_json({"failed": sorted(failed), "told": self.told}))
        self._wait_for(0, lambda alive: not done.exists(), "it merged the results")

    def gather(self, identity: Identity) -> Gathered:
        """As rank 0, wait for the others and merge all results into the output, in order of line and sample.

        Returns:
            what they have done.

        Raises:
            DataError: another process has ended before it had finished, or a result is not of this run.
        """
        others = range(1, self.world)
        reports = [self._report(rank) for rank in others]
        results = self._merge(identity)
        for path in _beside(self._output):
            if path.rank >= self.world or path.kind == "":
                path.file.unlink(missing_ok=True)
        for rank in others:
            self._done(rank).unlink(missing_ok=True)
        failed = {(index, sample) for report in reports for index, sample in report["failed"]}
        told = [(index, message) for report in reports for index, message in report["told"]]
        return Gathered(results, failed, sorted(told, key=lambda entry: entry[0]))

    def _report(self, rank: int) -> dict[str, Any]:
        done = self._done(rank)
        self._wait_for(rank, lambda alive: alive and done.exists(), "it had finished: nothing is merged yet")
        report: dict[str, Any] = json.loads(read_text(done))
        return report

    def _wait_for(self, rank: int, ready: Callable[[bool], bool], what: str) -> None:
        """Wait for something that another process does while it runs; `ready` is told whether it runs."""
        seen, since = False, time.monotonic()
        while True:
            alive = self._is_alive(rank)
            if ready(alive):
                return
            if not alive and (seen or time.monotonic() - since > BEGIN_SECONDS):
                ended = "has ended" if seen else "does not run, or has ended"
                raise DataError(f"Rank {rank} of this run {ended} before {what}. Repeat the command to go on.")
            seen = seen or alive
            time.sleep(POLL_SECONDS)

    def _merge(self, identity: Identity) -> int:
        """Write all lines in order into a file that takes the output's place at once."""
        places: dict[Key, _Line] = {}
        for path in self._files():
            for line in _lines(path):
                if not _belongs(line.value, identity(line.key)):
                    raise DataError(f"{path} holds a result that does not belong to this run: nothing is merged.")
                places[line.key] = _Line(line.key, {}, path, line.start, line.length)
        needed = sum(line.length + 1 for line in places.values())
        advice = "Free some space, and repeat the command: nothing is lost."
        with writing(None, self._output, needed=needed, advice=advice), replacing(self._output) as draft:
            _write_in_order(draft, [places[key] for key in sorted(places)])
        return len(places)

    def _is_alive(self, rank: int) -> bool:
        path = Path(f"{_rank_file(self._output, rank)}.alive")
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _done(self, rank: int) -> Path:
        return Path(f"{_rank_file(self._output, rank)}.done")

    def _files(self) -> list[Path]:
        """The output and the files of all ranks, of earlier runs too."""
        return [path for path in (self._output, *_rank_files(self._output).values()) if path.exists()]


def adopt(file: ResultsFile, done: set[Key], identity: Identity) -> set[Key]:
    """Take over, as a single process, the results that several have left beside an output and not merged.

    Args:
        file: the output, after its `resume`.
        done: the keys that it holds.
        identity: as `ResultsFile.resume` takes it.

    Returns:
        the keys that it holds now.

    Raises:
        DataError: another process is writing one of the files beside it, or it does not belong to this run.
    """
    output = Path(os.path.realpath(file.path))
    files = _rank_files(output)
    for path in files.values():
        _check(path, identity)
    done = set(done)
    for path in files.values():
        for line in _lines(path):
            if line.key not in done:
                file.append(line.value)
                done.add(line.key)
    if files:
        with output.open("r+b") as written:
            os.fsync(written.fileno())
        for beside in _beside(output):
            beside.file.unlink(missing_ok=True)
    return done


@dataclass(frozen=True)
class _Beside:
    file: Path
    rank: int
    kind: str
    """"" for results, or ".lock" and the like."""


@dataclass(frozen=True)
class _Line:
    """A result and where it is, in bytes; the line break is not counted."""

    key: Key
    value: Mapping[str, Any]
    path: Path
    start: int
    length: int


def _rank_file(output: Path, rank: int) -> Path:
    return Path(f"{output}.rank{rank}")


def _beside(output: Path) -> list[_Beside]:
    pattern = re.compile(re.escape(output.name) + r"\.rank(\d+)(|\.alive|\.done|\.draft|\.lock)")
    matches = ((path, pattern.fullmatch(path.name)) for path in output.parent.iterdir())
    return [_Beside(path, int(match[1]), match[2]) for path, match in matches if match]


def _rank_files(output: Path) -> dict[int, Path]:
    """Rank -> its results, of earlier runs too."""
    found = {beside.rank: beside.file for beside in _beside(output) if beside.kind == ""}
    return dict(sorted(found.items()))


def _check(path: Path, identity: Identity) -> None:
    """Refuse a file that is being written or is of another run; drop its incomplete last line."""
    with ResultsFile(path) as file:
        file.resume(identity)


def _lines(path: Path) -> Iterator[_Line]:
    """The whole lines of a file; an incomplete last one, which its process may be writing, is passed over."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            with_key = _parsed(line)
            if with_key is not None:
                yield _Line(*with_key, path, start, len(line.rstrip(b"\n")))
            start += len(line)


def _parsed(line: bytes) -> tuple[Key, Mapping[str, Any]] | None:
    try:
        value = json.loads(line)
        return (value["index"], value["sample"]), value
    except (ValueError, KeyError, TypeError):
        return None


def _write_in_order(draft: Path, lines: Iterable[_Line]) -> None:
    with draft.open("wb") as merged:
        for line in lines:
            with line.path.open("rb") as file:
                file.seek(line.start)
                merged.write(file.read(line.length) + b"\n")


def _belongs(line: Mapping[str, Any], expected: Mapping[str, Any] | None) -> bool:
    if expected is None:
        return False
    return all(
        _belongs(line.get(name) or {}, value) if isinstance(value, Mapping) else line.get(name) == value
        for name, value in expected.items()
    )
