"""What commands ask where several processes run them. `neurogen run` shares its prompts, by `prompt_sharing`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from neurogen.cli.prompt_sharing import Ranks, rank_and_world

__all__ = ["check_single", "launched", "local_device"]


def check_single(ctx: click.Context | None = None) -> None:
    """Refuse to do in each of several processes what has one result.

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
    """This process's share where several have been launched, else None.

    Args:
        values: the options of `neurogen run`.
        ctx: for the message of an error.

    Raises:
        click.UsageError: the options leave open where the results of several processes go.
        ParameterError: RANK and WORLD_SIZE contradict each other.
    """
    found = rank_and_world(os.environ)
    if found is None:
        return None
    rank, world = found
    several = f"{world} processes run this command (WORLD_SIZE)"
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
    return Ranks(rank, world, values["output"])


def local_device(device: str) -> str:
    """A GPU of its own for each of several processes on a machine, where `device` leaves open which one."""
    if device not in ("auto", "cuda") or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    from neurogen.models.language_model import resolve_device

    if resolve_device("auto")[0].type == "cpu":  # no GPU, or none that can be used: what was asked for says which
        return device
    count = torch.cuda.device_count()
    return f"cuda:{int(os.environ['LOCAL_RANK']) % count}"
