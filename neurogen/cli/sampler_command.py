"""Commands whose options depend on the sampler that is chosen with `--sampler`.

The command line is read for `--sampler` alone first, then again with that sampler's own options, which come from its
schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from neurogen.cli.common import ShownContext, listed, write_sections
from neurogen.cli.configuration import Section, key_of, variable_of
from neurogen.cli.processor_options import OfProcessors
from neurogen.cli.sampler_options import SamplerOption, sampler_options, unknown_option
from neurogen.contract.chain import given_in
from neurogen.contract.sampler import Sampler
from neurogen.contract.spec import parse_spec
from neurogen.errors import NeurogenError
from neurogen.registry.registry import SAMPLERS, Plugin, default_registry

__all__ = [
    "CommandOfSampler",
    "CommandWithSampler",
    "complete_sampler",
    "profile_option",
    "require_sampler",
    "sampler_names",
]

PROFILES = ("llamacpp", "transformers", "vllm")
PROFILE = "neurogen.profile"
Command = TypeVar("Command", bound=Callable[..., Any])


class CommandWithSampler(click.Command):
    """A command with `--sampler` before its sampler is known; it hands over to a `SamplerCommand`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Find out which sampler is meant, then read the arguments with its options added."""
        lenient = {**extra, "ignore_unknown_options": True}
        first = super().make_context(info_name, list(args), parent, **{**lenient, "resilient_parsing": True})
        name = _chosen(first)
        if name is None:
            return super().make_context(info_name, args, parent, **lenient)
        if extra.get("resilient_parsing") and not _can_be_loaded(name):  # while its name is typed, in a shell
            return super().make_context(info_name, args, parent, **lenient)
        # With its sampler in the name, the usage line and the hint at --help lead to the options of that sampler.
        chosen = SamplerCommand(self, name)
        extra["default_map"] = chosen.defaults(parent, name)
        return chosen.make_context(f"{info_name} --sampler {name}", args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and how to see a sampler's."""
        write_sections(ctx, formatter, _sections(self.get_params(ctx)))
        with formatter.section("Options of the sampler"):
            formatter.write_text(
                f"Each sampler has its own. See them with: {ctx.command_path} --sampler NAME --help. "
                f"Installed: {', '.join(sampler_names()) or 'none'}."
            )


class CommandOfSampler(click.Command):
    """A command with the options of one sampler.

    Args:
        base: the command without them.
        sampler: as `neurogen.load_sampler` takes it.

    Raises:
        PluginError: it cannot be found or loaded, or its options cannot be given.
    """

    context_class = ShownContext

    def __init__(self, base: click.Command, sampler: str) -> None:
        registry = default_registry()
        self.plugin: Plugin = registry.find(sampler)
        self.sampler_class: type[Sampler] = registry.load_class(sampler)
        self.own = self.options_beside(_spellings(base))
        super().__init__(
            base.name,
            params=[*base.params, *self.own],
            callback=base.callback,
            help=base.help,
            context_settings=base.context_settings,
        )

    def options_beside(self, taken: set[str]) -> list[SamplerOption]:
        """The sampler's options; `taken` are the spellings of the command's own."""
        return sampler_options(self.plugin, self.sampler_class, taken)

    def defaults(self, parent: click.Context | None, spec: str) -> Section | None:
        """The defaults that configuration files give for the command and for this sampler, asked for by `spec`.

        Its options learn the names of their variables; a parameter in `spec` is given, and takes no default.
        """
        given = given_in(self.sampler_class, [link.params for link in parse_spec(spec)])
        for option in self.own:
            if option.parameter not in given:
                option.envvar = variable_of((str(self.name),), key_of(option) or "")
        section = parent.lookup_default(str(self.name)) if parent is not None else None
        options: dict[str, click.Option] = {option.parameter: option for option in self.own}
        return section.with_sampler(self.plugin, options, given) if isinstance(section, Section) else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As always, but an option that does not exist is explained."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            others = [option for param in self.params for option in param.opts]
            message = unknown_option(error.option_name, self.sampler_class, default_registry(), others)
            raise click.UsageError(message, ctx) from None


class SamplerCommand(CommandOfSampler):
    """What `CommandWithSampler` is once its sampler is known."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sampler's options in a section of their own, first."""
        params = self.get_params(ctx)
        own = [param for param in params if isinstance(param, SamplerOption)]
        others = [param for param in params if param not in own]
        title = f"Options of {self.plugin.name} ({self.plugin.origin})"
        write_sections(ctx, formatter, {title: own, **_sections(others)})


def _sections(params: Sequence[click.Parameter]) -> dict[str, Sequence[click.Parameter]]:
    """The command's own options, and those of processors."""
    of_processors = [param for param in params if isinstance(param, OfProcessors)]
    return {
        "Options": [param for param in params if param not in of_processors],
        "Processors, which change logits before the sampler": of_processors,
    }


def sampler_names() -> list[str]:
    """Names of the samplers that may be used."""
    return sorted({plugin.name for plugin in default_registry().plugins() if plugin.status != "disabled"})


def _can_be_loaded(name: str) -> bool:
    try:
        default_registry().load_class(name)
    except NeurogenError:
        return False
    return True


def _spellings(command: click.Command) -> set[str]:
    own = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    return own | {"--help", "--debug"}


def complete_sampler(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of samplers that begin so."""
    return [CompletionItem(name) for name in sampler_names() if name.startswith(incomplete)]


def profile_option(command: Command) -> Command:
    """Accept `--profile`, which chooses the sampler that does what another program does."""
    return click.option(
        "--profile",
        type=click.Choice(PROFILES),
        expose_value=False,
        callback=_remember_profile,
        help="Instead of --sampler: mean by top-k, top-p, min-p and temperature what this program means.",
    )(command)


def _remember_profile(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[PROFILE] = value


def _chosen(ctx: click.Context) -> str | None:
    """The sampler that is meant, by its name or by a profile."""
    profile: str | None = ctx.meta.get(PROFILE)
    sampler: str | None = ctx.params.get("sampler")
    if profile is None:
        return sampler
    if ctx.get_parameter_source("sampler") == click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("Give either --sampler or --profile, not both: a profile is a sampler.", ctx)
    return profile


def require_sampler(ctx: click.Context, sampler: str | None) -> str:
    """The sampler that was given.

    Raises:
        click.UsageError: none was, or there are arguments that belong to nothing.
    """
    profile: str | None = ctx.meta.get(PROFILE)
    sampler = profile or sampler
    if sampler is None:
        raise click.UsageError(f"Which sampler? {_choice_of_samplers()}", ctx)
    if ctx.args:
        raise click.UsageError(f"Unexpected argument {ctx.args[0]!r}. A prompt is given with --prompt TEXT.", ctx)
    return sampler


def _choice_of_samplers() -> str:
    names = sampler_names()
    if not names:
        return f"None is installed: `{SAMPLERS.example}`."
    return f"Choose one with --sampler: {listed(names, 'or')}. `neurogen samplers` tells what they do."
