"""`neurogen run`: its options and what they allow. What is then done is in `execution`.

The options depend on the sampler; see `sampler_options`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from neurogen.cli.beam_options import beam_options, check_beams, sampler_for_beams
from neurogen.cli.common import DescribedDefault, WholeNumber, debug_option, device_option, dtype_option, prompt_text
from neurogen.cli.completion import complete_model
from neurogen.cli.draft_options import check_draft, draft_options
from neurogen.cli.engine_options import check_engine, engine_options
from neurogen.cli.execution import execute
from neurogen.cli.model_options import DEFAULT_MODEL, parse_special_option
from neurogen.cli.processor_options import make_processors, processor_options
from neurogen.cli.sampler_options import (
    CommandWithSampler,
    complete_sampler,
    make_sampler,
    profile_option,
    require_sampler,
)
from neurogen.cli.session import Arguments
from neurogen.files import check_place
from neurogen.registry.registry import default_registry
from neurogen.text.generation import DEFAULT_NEW_TOKENS

__all__ = ["command"]


def _texts(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    if not all(value):
        raise click.BadParameter("it must not be empty.")
    return tuple(value)


def _check_record(ctx: click.Context, values: Mapping[str, Any]) -> None:
    """Refuse a recording that could not be written, or that would take the place of another file of this run."""
    if values["record"] is None:
        return
    check_place("The recording", values["record"])
    for name in ("prompts", "output"):
        if values[name] is not None and Path(values[name]).resolve() == Path(values["record"]).resolve():
            raise click.UsageError(f"--record would replace the file of --{name}: give it another name.", ctx)


def _model(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("it must not be empty.")
    return value


@processor_options
@click.command("run", cls=CommandWithSampler, context_settings={"allow_extra_args": True, "max_content_width": 100})
@click.option("--sampler", "-s", metavar="NAME", shell_complete=complete_sampler, help="Chooses the tokens; required.")
@profile_option
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    callback=_model,
    shell_complete=complete_model,
    help="A known name, a folder, a .gguf file, or a name on the Hugging Face hub.",
)
@click.option("--prompt", callback=prompt_text, help="The text to continue, or in a chat model to answer.")
@click.option(
    "--prompts",
    metavar="FILE.jsonl",
    help="Many prompts, one a line: a JSON string, or an object with `prompt` or `text`, and if need be `seed`, "
    "`max_new_tokens`, `stop`, `stop_ids`, `params` and `processors`. - is standard "
    "input. Without --prompt and --prompts, standard input is one prompt.",
)
@click.option("-n", type=WholeNumber(1), default=1, show_default=True, help="Samples a prompt.")
@click.option(
    "--best-of",
    type=WholeNumber(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Draw N candidates for each sample, and give the one most probable for the model.",
)
@beam_options
@click.option(
    "--max-new-tokens",
    type=WholeNumber(1),
    cls=DescribedDefault,
    show_default=f"what fits the context, up to {DEFAULT_NEW_TOKENS}",
    help="End a sequence after so many tokens.",
)
@click.option(
    "--seed",
    type=WholeNumber(),
    cls=DescribedDefault,
    show_default="a random one, shown at the end",
    help="Sample I of line J, both from 0, uses SEED + J*N + I.",
)
@click.option(
    "--stop", multiple=True, callback=_texts, metavar="TEXT", help="End before this text; repeat for several."
)
@click.option(
    "--stop-id",
    multiple=True,
    type=WholeNumber(0),
    metavar="ID",
    help="End at this token, beside the model's own ends; repeat for several.",
)
@click.option(
    "--logprobs",
    type=WholeNumber(0),
    metavar="N",
    help="Log-probabilities of the chosen token and of the N most probable, in --json and --output.",
)
@draft_options
@engine_options
@parse_special_option
@device_option
@dtype_option
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Use the model's chat template, or continue the bare text.  [default: chat where there is a template]",
)
@click.option("--stream/--no-stream", default=None, help="Write text as it grows.  [default: stream a single sequence]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a sequence, as they finish.")
@click.option(
    "--output",
    metavar="FILE.jsonl",
    help="Append results to this file instead of printing them. Repeat the command to go on with an interrupted run.",
)
@click.option(
    "--record",
    metavar="FILE",
    help="Keep what neurogen replay needs to give the same tokens again, or to say why they differ.",
)
@click.option("--batch-size", type=WholeNumber(1), default=8, show_default=True, help="Sequences at a time.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no closing line.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, sampler: str | None, **values: Any) -> int:
    """Continue prompts with a model and a sampler."""
    name = require_sampler(ctx, sampler_for_beams(ctx, sampler))
    if values["prompt"] is not None and values["prompts"] is not None:
        raise click.UsageError("Give either --prompt or --prompts, not both.", ctx)
    if values["stream"] and values["as_json"]:
        raise click.UsageError("--stream writes text as it grows, --json whole objects: give one of them.", ctx)
    if values["best_of"] > 1 and (values["stream"] or values["record"] is not None):
        raise click.UsageError("--best-of chooses among whole texts: leave out --stream and --record.", ctx)
    if values["logprobs"] is not None and not values["as_json"] and values["output"] is None:
        raise click.UsageError("--logprobs goes into objects, not into text: add --json or --output FILE.jsonl.", ctx)
    _check_record(ctx, values)
    check_beams(values, name, ctx)
    check_engine(values, ctx)
    made = make_sampler(default_registry(), name, values, ctx)
    processors = make_processors(default_registry(), values, ctx)
    check_draft(values, made, processors, ctx)
    if processors and values["engine"] == "vllm":
        raise click.UsageError("Processors do not go with --engine vllm, which has its own.", ctx)
    return execute(Arguments(**values), made, processors)
