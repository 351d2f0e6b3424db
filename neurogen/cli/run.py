"""`neurogen run`: its options. `run_checks` refuses options that do not go together; `session` is the run itself.

The options depend on the sampler; see `sampler_options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from neurogen.cli.arguments import DRAFT_TOKENS, Arguments
from neurogen.cli.common import DescribedDefault, WholeNumber, debug_option, device_option, dtype_option, prompt_text
from neurogen.cli.completion import complete_model
from neurogen.cli.model_options import DEFAULT_MODEL, parse_special_option
from neurogen.cli.processor_options import make_processors, processor_options
from neurogen.cli.run_checks import BEAM_SAMPLER, beam_settings, check_draft, check_engine, check_output
from neurogen.cli.sampler_options import (
    CommandWithSampler,
    complete_sampler,
    make_sampler,
    profile_option,
    require_sampler,
)
from neurogen.cli.session import run_session
from neurogen.registry.registry import default_registry
from neurogen.text.generation import DEFAULT_NEW_TOKENS

__all__ = ["command"]


def _texts(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    if not all(value):
        raise click.BadParameter("it must not be empty.")
    return tuple(value)


def _named_values(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Name -> value, as texts."""
    named: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"it must be NAME=VALUE, got {text!r}.", ctx=ctx, param=param)
        if name in named:
            raise click.BadParameter(f"{name} is given twice.", ctx=ctx, param=param)
        named[name] = value
    return named


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
@click.option(
    "--beams",
    type=WholeNumber(1),
    metavar="N",
    help="Beam search of this width instead of a sampler: -n gives the N best sequences, the best first.",
)
@click.option(
    "--length-penalty",
    type=float,
    metavar="X",
    help="Of beam search: rank by log-probability / length ** X; more prefers longer texts.  [default: 1]",
)
@click.option("--early-stopping", is_flag=True, help="Of beam search: end as soon as there are as many texts as beams.")
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
@click.option(
    "--draft",
    metavar="MODEL",
    shell_complete=complete_model,
    help="A smaller model with the same tokenizer, which proposes tokens that --model checks several at a time: "
    "the distribution stays --model's.",
)
@click.option(
    "--draft-tokens",
    type=WholeNumber(1),
    metavar="N",
    help=f"How many tokens the draft proposes at a time.  [default: {DRAFT_TOKENS}]",
)
@click.option(
    "--engine",
    type=click.Choice(("torch", "llamacpp", "vllm")),
    default="torch",
    show_default=True,
    help="Runs the model: PyTorch; llama.cpp, for .gguf files; vLLM.",
)
@click.option(
    "--engine-option",
    multiple=True,
    callback=_named_values,
    metavar="NAME=VALUE",
    help="An option of vLLM's own, such as max_model_len=4096; repeat for several.",
)
@click.option(
    "--threads",
    type=WholeNumber(1),
    metavar="N",
    help="Threads of the model on the CPU.  [default: PyTorch's own number]",
)
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
    name = require_sampler(ctx, BEAM_SAMPLER if sampler is None and values["beams"] is not None else sampler)
    check_output(values, ctx)
    values["beam"] = beam_settings(values, name, ctx)
    check_engine(values, ctx)
    made = make_sampler(default_registry(), name, values, ctx)
    processors = make_processors(default_registry(), values, ctx)
    check_draft(values, made, processors, ctx)
    return run_session(Arguments(**values), made, processors)
