"""The options `--beams`, `--length-penalty` and `--early-stopping`: beam search, and what does not go with it.

Whatever does not go with it is refused before anything is loaded. Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from neurogen.cli.common import WholeNumber, typed
from neurogen.decoding.beam_settings import BeamSettings
from neurogen.errors import ParameterError

__all__ = ["beam_options", "check_beams", "sampler_for_beams"]

Command = TypeVar("Command", bound=Callable[..., Any])

SAMPLER = "greedy"
"""Draws nothing, as beam search does; results are said to be its."""

REFUSED = ("record", "stream", "logprobs")


def beam_options(command: Command) -> Command:
    """Accept the options of beam search; `check_beams` reads them."""
    beams = click.option(
        "--beams",
        type=WholeNumber(1),
        metavar="N",
        help="Beam search of this width instead of a sampler: -n gives the N best sequences, the best first.",
    )
    penalty = click.option(
        "--length-penalty",
        type=float,
        metavar="X",
        help="Of beam search: rank by log-probability / length ** X; more prefers longer texts.  [default: 1]",
    )
    early = click.option(
        "--early-stopping", is_flag=True, help="Of beam search: end as soon as there are as many texts as beams."
    )
    return beams(penalty(early(command)))


def sampler_for_beams(ctx: click.Context, sampler: str | None) -> str | None:
    """The sampler that was given, or the one that results of a beam search bear."""
    return SAMPLER if sampler is None and ctx.params.get("beams") is not None else sampler


def check_beams(values: dict[str, Any], name: str, ctx: click.Context) -> None:
    """Put `beam`, a BeamSettings or None, in the place of the three options.

    Args:
        values: the command's options.
        name: the sampler's.
        ctx: of the command.

    Raises:
        click.UsageError: something does not go with beam search, or is an option of it and there is none.
        click.BadParameter: a value outside its domain.
    """
    beams, penalty, early = (values.pop(option) for option in ("beams", "length_penalty", "early_stopping"))
    values["beam"] = None
    if beams is None:
        for option in ("length_penalty", "early_stopping"):
            if typed(ctx, option):
                raise click.UsageError(f"{_spelled(option)} says how a beam search works: add --beams N.", ctx)
        return
    _refuse_others(values, name, ctx)
    try:
        values["beam"] = BeamSettings(beams, 1.0 if penalty is None else penalty, early)
    except ParameterError as error:
        param = next(param for param in ctx.command.params if param.name == error.parameter)
        raise click.BadParameter(str(error), ctx=ctx, param=param) from None
    if values["n"] > beams:
        raise click.UsageError(f"-n must be at most --beams, which is {beams}, got {values['n']}.", ctx)


def _refuse_others(values: dict[str, Any], name: str, ctx: click.Context) -> None:
    if name.rpartition(":")[2] != SAMPLER:
        raise click.UsageError(f"--beams draws nothing: give --sampler {SAMPLER} or none, got {name!r}.", ctx)
    for option in REFUSED:
        if values[option] is not None and values[option] is not False:
            raise click.UsageError(f"{_spelled(option)} does not go with --beams.", ctx)
    if values["engine"] != "torch":
        raise click.UsageError(f"--engine {values['engine']} does not go with --beams: only torch's can.", ctx)
    if values["best_of"] > 1:
        raise click.UsageError("Give either --beams or --best-of: a beam search draws no candidates.", ctx)
    if typed(ctx, "batch_size"):
        raise click.UsageError("--batch-size does not go with --beams: the beams of a prompt are the batch.", ctx)


def _spelled(option: str) -> str:
    return f"--{option.replace('_', '-')}"
