"""`neurogen run`: its options and what they allow. What is then done is in `session`.

The options depend on the sampler: the command line is read for `--sampler` alone first, then again with that sampler's
own options, which come from its schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from neurogen.cli.common import WholeNumber, debug_option, device_option, dtype_option, listed
from neurogen.cli.sampler_options import SamplerOption, make_sampler, sampler_options, unknown_option
from neurogen.cli.session import Arguments, execute
from neurogen.errors import DataError
from neurogen.prompts import check_text
from neurogen.registry import Plugin, default_registry
from neurogen.sampler import Sampler

__all__ = ["command"]

DEFAULT_MODEL = "starter"


class RunCommand(click.Command):
    """`run` before its sampler is known; it hands over to a `SamplerCommand`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Find out which sampler is meant, then read the arguments with its options added."""
        lenient = {**extra, "ignore_unknown_options": True}
        first = super().make_context(info_name, list(args), parent, **{**lenient, "resilient_parsing": True})
        name = first.params.get("sampler")
        if name is None:
            return super().make_context(info_name, args, parent, **lenient)
        # With its sampler in the name, the usage line and the hint at --help lead to the options of that sampler.
        return SamplerCommand(self, name).make_context(f"{info_name} --sampler {name}", args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and how to see a sampler's."""
        super().format_options(ctx, formatter)
        with formatter.section("Options of the sampler"):
            formatter.write_text(
                f"Each sampler has its own. See them with: {ctx.command_path} --sampler NAME --help. "
                f"Installed: {', '.join(_sampler_names()) or 'none'}."
            )


class SamplerCommand(click.Command):
    """`run` with the options of one sampler."""

    def __init__(self, base: click.Command, sampler: str) -> None:
        registry = default_registry()
        self.plugin: Plugin = registry.find(sampler)
        self.sampler_class: type[Sampler] = registry.load_class(sampler)
        own = sampler_options(self.plugin, self.sampler_class, _spellings(base))
        super().__init__(
            base.name,
            params=[*base.params, *own],
            callback=base.callback,
            help=base.help,
            context_settings=base.context_settings,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As always, but an option that does not exist is explained."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            others = [option for param in self.params for option in param.opts]
            message = unknown_option(error.option_name, self.sampler_class, default_registry(), others)
            raise click.UsageError(message, ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sampler's options in a section of their own, first."""
        params = self.get_params(ctx)
        own = [param for param in params if isinstance(param, SamplerOption)]
        sections: dict[str, Sequence[click.Parameter]] = {
            f"Options of {self.plugin.name} ({self.plugin.origin})": own,
            "Options": [param for param in params if param not in own],
        }
        for title, members in sections.items():
            records = [record for param in members if (record := param.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _sampler_names() -> list[str]:
    return sorted({plugin.name for plugin in default_registry().plugins() if plugin.status != "disabled"})


def _spellings(command: click.Command) -> set[str]:
    own = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    return own | {"--help", "--debug"}


def _complete_sampler(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _sampler_names() if name.startswith(incomplete)]


def _texts(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    if not all(value):
        raise click.BadParameter("it must not be empty.")
    return tuple(value)


def _prompt(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else check_text(value)
    except DataError as error:
        raise click.BadParameter(f"{error}.") from None


def _model(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("it must not be empty.")
    return value


@click.command("run", cls=RunCommand, context_settings={"allow_extra_args": True, "max_content_width": 100})
@click.option("--sampler", "-s", metavar="NAME", shell_complete=_complete_sampler, help="Chooses the tokens; required.")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    callback=_model,
    help="A known name, a folder, a .gguf file, or a name on the Hugging Face hub.",
)
@click.option("--prompt", callback=_prompt, help="The text to continue, or in a chat model to answer.")
@click.option(
    "--prompts",
    metavar="FILE.jsonl",
    help="Many prompts, one a line: a JSON string, or an object with "
    "`prompt` or `text`, and if need be `seed`, `max_new_tokens`, `stop` and `params`. - is standard input. "
    "Without --prompt and --prompts, standard input is one prompt.",
)
@click.option("-n", type=WholeNumber(1), default=1, show_default=True, help="Samples a prompt.")
@click.option(
    "--max-new-tokens", type=WholeNumber(1), default=128, show_default=True, help="End a sequence after so many tokens."
)
@click.option(
    "--seed",
    type=WholeNumber(),
    show_default="a random one, shown at the end",
    help="Sample I of line J, both from 0, uses SEED + J*N + I.",
)
@click.option(
    "--stop", multiple=True, callback=_texts, metavar="TEXT", help="End before this text; repeat for several."
)
@click.option(
    "--logprobs",
    type=WholeNumber(0),
    metavar="N",
    help="Log-probabilities of the chosen token and of the N most probable, in --json and --output.",
)
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
@click.option("--batch-size", type=WholeNumber(1), default=8, show_default=True, help="Sequences at a time.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no closing line.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, sampler: str | None, **values: Any) -> int:
    """Continue prompts with a model and a sampler."""
    if sampler is None:
        raise click.UsageError(f"Which sampler? {_choice_of_samplers()}", ctx)
    if ctx.args:
        raise click.UsageError(f"Unexpected argument {ctx.args[0]!r}. A prompt is given with --prompt TEXT.", ctx)
    if values["prompt"] is not None and values["prompts"] is not None:
        raise click.UsageError("Give either --prompt or --prompts, not both.", ctx)
    if values["stream"] and values["as_json"]:
        raise click.UsageError("--stream writes text as it grows, --json whole objects: give one of them.", ctx)
    if values["logprobs"] is not None and not values["as_json"] and values["output"] is None:
        raise click.UsageError("--logprobs goes into objects, not into text: add --json or --output FILE.jsonl.", ctx)
    made = make_sampler(default_registry(), sampler, values, ctx)
    return execute(Arguments(**values), made)


def _choice_of_samplers() -> str:
    names = _sampler_names()
    if not names:
        return "None is installed: `pip install neurogen-greedy neurogen-topk neurogen-topp`."
    return f"Choose one with --sampler: {listed(names, 'or')}. `neurogen samplers` tells what they do."
