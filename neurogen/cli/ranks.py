"""Several processes that run one command, as torchrun and accelerate launch start them.

`neurogen run` shares its prompts among them through a torch.distributed group; every other command refuses. Knows
nothing of prompts, results or models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click

from neurogen.errors import DataError, ParameterError

__all__ = ["Ranks", "check_single", "launched", "local_device", "rank_and_world"]

POLL_SECONDS = 0.1
JOIN_TIME = timedelta(minutes=5)
"""How long the processes wait for each other to start."""

WORK_TIME = timedelta(days=3650)
"""How long a process that has finished waits for the others; one that ends early is noticed at once."""


class Ranks:
    """The processes of one run, and this one's place among them.

    Args:
        rank: which process, from 0.
        world: how many there are.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._group: Any = None

    def mine(self, index: int) -> bool:
        """Whether a line is this process's."""
        return index % self.world == self.rank

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be connected with the other processes.

        Raises:
            ParameterError: the environment does not say where they meet.
            DataError: one of them does not come.
        """
        import torch.distributed as dist

        try:
            dist.init_process_group("gloo", timeout=JOIN_TIME)
            self._group = dist.new_group(backend="gloo", timeout=WORK_TIME)
        except ValueError as error:
            raise ParameterError(
                f"{self.world} processes run this command (WORLD_SIZE), and they cannot find each other: {error}. "
                "Start them with torchrun or accelerate launch.",
                "MASTER_ADDR",
            ) from None
        except RuntimeError as error:
            raise DataError(f"The other processes of this run cannot be reached: {error}.") from None
        try:
            yield
        finally:
            dist.destroy_process_group()

    def from_first(self, value: Any) -> Any:
        """What rank 0 calls this with, in every process."""
        return self.gathered(value)[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every process calls this with, in the order of ranks; waits for all of them.

        Raises:
            DataError: one has ended before.
        """
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        try:
            waiting = dist.barrier(group=self._group, async_op=True)
            while not waiting.is_completed():
                time.sleep(POLL_SECONDS)  # here Ctrl-C and SIGTERM are heard, unlike in a collective operation
            waiting.wait()
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError:
            raise DataError(
                "Another process of this run has ended early: its message says why. Repeat the command to go on."
            ) from None
        return values


def rank_and_world(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """What RANK and WORLD_SIZE say; None if several processes were not launched.

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


def check_single(ctx: click.Context | None = None) -> None:
    """Refuse a command that has one result if several processes were launched.

    Raises:
        click.UsageError: several have been launched.
        ParameterError: RANK and WORLD_SIZE contradict each other.
    """
    found = rank_and_world(os.environ)
    if found is not None:
        raise click.UsageError(
            f"{found[1]} processes run this command (WORLD_SIZE), which is for a single one: each would do the same "
            "work and write the same file. Start it without a launcher, or unset RANK and WORLD_SIZE.",
            ctx,
        )


def launched(values: Mapping[str, Any], ctx: click.Context | None = None) -> Ranks | None:
    """This process's place where several have been launched, else None.

    Args:
        values: the options of `neurogen run`.
        ctx: for the message of an error.

    Raises:
        click.UsageError: the options do not say where the results of several processes go.
        ParameterError: RANK and WORLD_SIZE contradict each other.
    """
    found = rank_and_world(os.environ)
    if found is None:
        return None
    several = f"{found[1]} processes run this command (WORLD_SIZE)"
    if values["prompts"] in (None, "-") or values["output"] is None:
        raise click.UsageError(
            f"{several}: they share --prompts FILE.jsonl and write --output FILE.jsonl. Unset WORLD_SIZE to run one.",
            ctx,
        )
    if values["seed"] is None:
        raise click.UsageError(f"{several}: give --seed, which all of them must know.", ctx)
    for name, option in (("as_json", "--json"), ("stream", "--stream"), ("record", "--record")):
        if values[name]:
            raise click.UsageError(f"{several}: {option} is for a single one.", ctx)
    return Ranks(*found)


def local_device(device: str) -> str:
    """A GPU of its own for each of several processes on a machine, if `device` does not say which one."""
    if device not in ("auto", "cuda") or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    from neurogen.models.language_model import resolve_device

    if resolve_device("auto")[0].type == "cpu":  # no GPU, or none that can be used: what was asked for says which
        return device
    count = torch.cuda.device_count()
    return f"cuda:{int(os.environ['LOCAL_RANK']) % count}"
