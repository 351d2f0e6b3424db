"""`neurogen chat`: its options. The conversation itself is in `chat_session`."""

from __future__ import annotations

import sys
from typing import Any

import click

from neurogen.cli.common import (
    DescribedDefault,
    WholeNumber,
    debug_option,
    device_option,
    dtype_option,
    is_terminal,
    random_seed,
)
from neurogen.cli.model_options import load_shown, model_option, parse_special_option
from neurogen.cli.ranks import check_single
from neurogen.cli.sampler_options import (
    CommandWithSampler,
    complete_sampler,
    make_sampler,
    profile_option,
    require_sampler,
)
from neurogen.registry.registry import default_registry
from neurogen.text.generation import RunOptions

__all__ = ["command"]

DEFAULT_SAMPLER = "topp"


@click.command("chat", cls=CommandWithSampler, context_settings={"allow_extra_args": True, "max_content_width": 100})
@click.option(
    "--sampler",
    "-s",
    metavar="NAME",
    default=DEFAULT_SAMPLER,
    show_default=True,
    shell_complete=complete_sampler,
    help="Chooses the tokens; /sampler NAME changes it.",
)
@profile_option
@model_option
@click.option("--system", metavar="TEXT", help="What a chat model is told before the first turn.")
@click.option("--load", metavar="FILE", help="Go on with a conversation that /save has written.")
@click.option(
    "--max-new-tokens", type=WholeNumber(1), default=256, show_default=True, help="End an answer after so many."
)
@click.option(
    "--seed",
    type=WholeNumber(),
    cls=DescribedDefault,
    show_default="a random one",
    help="Of the first answer; /retry adds one.",
)
@click.option("--chat/--no-chat", default=None, help="Use the model's chat template.  [default: where there is one]")
@parse_special_option
@device_option
@dtype_option
@click.option("--quiet", "-q", is_flag=True, help="No greeting and no lines about speed.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, sampler: str | None, **values: Any) -> int:
    """Talk with a model: text streams, /help lists what can be changed on the way, Ctrl-C stops an answer.

    A model without a chat template continues your text. Lines from a pipe are turns, one each.
    """
    check_single(ctx)
    made = make_sampler(default_registry(), require_sampler(ctx, sampler), values, ctx)
    from neurogen.cli.chat_session import ChatSession
    from neurogen.text.conversation import Conversation, read_conversation

    if values["load"] is not None:
        read_conversation(values["load"])  # first, since a misspelt path should not wait for the model
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    model = load_shown(values, shown=interactive and not values["quiet"])
    seed = random_seed() if values["seed"] is None else values["seed"]
    options = RunOptions(
        max_new_tokens=values["max_new_tokens"],
        seed=seed,
        chat=values["chat"],
        parse_special=values["parse_special"],
    )
    conversation = Conversation(model, made, options, system=values["system"])
    if values["load"] is not None:
        conversation.load(values["load"])
    return ChatSession(conversation, interactive=interactive, quiet=values["quiet"]).run()
