"""Several processes that share the prompts of one `neurogen run`, as torchrun and accelerate launch start them.

Each knows its rank from the environment, takes every WORLD_SIZE-th line and writes a file of its own beside the output;
rank 0 waits for the others and merges. Files and locks are all they have in common: no process group, no torch.

A rank holds the lock OUT.rankN.alive while it runs, and makes OUT.rankN.done when it has finished. It removes a
`.done` that an earlier run has left before it takes that lock; so where the lock is held, `.done` is of this run.
Rank 0 removes it once the results are merged, which is what the others wait for: a launcher ends all when one fails.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout

from neurogen.errors import DataError

__all__ = ["Ranks", "launched", "local_device"]

Key = tuple[int, int]
Identity = Callable[[Key], Mapping[str, Any] | None]

POLL_SECONDS = 0.1
TAKE_SECONDS = 10.0
"""Rank 0 holds another's lock for a moment when it looks whether it is held."""


class Ranks:
    """This process's share of a run.

    Args:
        rank: which process, from 0.
        world: how many there are.
        output: where all results are to be in the end.

    Attributes:
        rank, world: as given.
        own: the file that this process writes.
    """

    def __init__(self, rank: int, world: int, output: str) -> None:
        self.rank, self.world = rank, world
        self._output = Path(os.path.realpath(output))
        self.own = self._file(rank)
        self._alive = FileLock(f"{self.own}.alive")

    def mine(self, index: int) -> bool:
        """Whether a line is this process's."""
        return index % self.world == self.rank

    def begin(self) -> None:
        """Let the others know that this process runs; its own file is locked by now."""
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

        Raises:
            DataError: a line there does not belong to this run.
        """
        others = [path for path in self._files() if path != self.own]
        return {key for key, _ in self._results(others, identity) if self.mine(key[0])}

    def wait(self, failed: Iterable[int]) -> None:
        """Say that this process, which is not rank 0, has finished, and wait until its results are merged.

        Raises:
            DataError: rank 0 has ended before that.
        """
        done, draft = self._done(self.rank), Path(f"{self.own}.draft")
        draft.write_text(json.dumps(sorted(failed)), encoding="utf-8")
        draft.replace(done)
        seen = False
        while done.exists():
            alive = self._is_alive(0)
            if seen and not alive and done.exists():
                raise DataError(f"Rank 0 has ended before it merged the results into {self._output}. {_AGAIN}")
            seen = seen or alive
            time.sleep(POLL_SECONDS)

    def gather(self, identity: Identity) -> tuple[int, set[int]]:
        """As rank 0, wait for the others and merge all results into the output, in order.

        Returns:
            how many results there are, and the lines that other processes could not run.

        Raises:
            DataError: another process has ended before it had finished.
        """
        failed = {index for rank in range(1, self.world) for index in self._failed(rank)}
        files = self._files()
        lines = dict(self._results(files, identity))
        draft = Path(f"{self._output}.merged")
        with draft.open("wb") as merged:
            merged.writelines(lines[key] + b"\n" for key in sorted(lines))
            merged.flush()
            os.fsync(merged.fileno())
        draft.replace(self._output)
        for path in files:
            if path != self._output:
                path.unlink(missing_ok=True)
        for rank in range(1, self.world):
            self._done(rank).unlink(missing_ok=True)
        return len(lines), failed

    def _failed(self, rank: int) -> list[int]:
        seen = False
        while True:
            alive = self._is_alive(rank)
            if alive and self._done(rank).exists():
                failed: list[int] = json.loads(self._done(rank).read_text(encoding="utf-8"))
                return failed
            if seen and not alive:
                raise DataError(f"Rank {rank} has ended before it had finished: nothing is merged yet. {_AGAIN}")
            seen = seen or alive
            time.sleep(POLL_SECONDS)

    def _is_alive(self, rank: int) -> bool:
        path = Path(f"{self._file(rank)}.alive")
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _file(self, rank: int) -> Path:
        return Path(f"{self._output}.rank{rank}")

    def _done(self, rank: int) -> Path:
        return Path(f"{self._file(rank)}.done")

    def _files(self) -> list[Path]:
        """The output and the files of all ranks, of earlier runs too."""
        start = f"{self._output.name}.rank"
        found = [path for path in self._output.parent.iterdir() if path.name.startswith(start)]
        ranks = [path for path in found if path.name.removeprefix(start).isdecimal()]
        return [path for path in (self._output, *sorted(ranks)) if path.exists()]

    def _results(self, files: Iterable[Path], identity: Identity) -> Iterator[tuple[Key, bytes]]:
        """The whole lines of files; an incomplete last one, which its process may be writing, is passed over."""
        for path in files:
            for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
                try:
                    value = json.loads(line)
                    key = (value["index"], value["sample"])
                except (ValueError, KeyError, TypeError):
                    continue
                if not _belongs(value, identity(key)):
                    raise DataError(
                        f"{path} cannot be continued: line {number} does not belong to this run. Repeat the command "
                        "that wrote the file to go on with it, or choose another file."
                    )
                yield key, line


_AGAIN = "Repeat the command to go on."


def _belongs(line: Mapping[str, Any], expected: Mapping[str, Any] | None) -> bool:
    if expected is None:
        return False
    return all(
        _belongs(line.get(name) or {}, value) if isinstance(value, Mapping) else line.get(name) == value
        for name, value in expected.items()
    )


def launched(values: Mapping[str, Any], ctx: click.Context | None = None) -> Ranks | None:
    """This process's share where several have been launched, else None.

    Args:
        values: the options of `neurogen run`.
        ctx: for the message of an error.

    Raises:
        click.UsageError: the options leave open where the results of several processes go.
    """
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return None
    if world <= 1:
        return None
    several = f"{world} processes run this command (WORLD_SIZE)"
    if values["prompts"] in (None, "-") or values["output"] is None:
        raise click.UsageError(f"{several}: they share --prompts FILE.jsonl and write --output FILE.jsonl.", ctx)
    if values["seed"] is None:
        raise click.UsageError(f"{several}: give --seed, which all of them must know.", ctx)
    for name, option in (("as_json", "--json"), ("stream", "--stream"), ("record", "--record")):
        if values[name]:
            raise click.UsageError(f"{several}: {option} is for a single one.", ctx)
    return Ranks(rank, world, values["output"])


def local_device(device: str) -> str:
    """A GPU of its own for each of several processes on a machine, where `device` leaves open which one."""
    if device not in ("auto", "cuda") or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(os.environ['LOCAL_RANK']) % count}" if count else device
