"""Commands whose options depend on the sampler that is chosen with `--sampler`, or named by an argument.

The command line is read for the sampler alone first, then again with that sampler's own options, which come from its
schema. Knows no particular sampler.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from neurogen.cli.common import ShownContext, listed, write_sections
from neurogen.cli.configuration import Section, key_of, variable_of
from neurogen.cli.parameter_options import ParameterOption, ParameterType, naming_option, negated
from neurogen.contract.chain import given_in
from neurogen.contract.parameters import domain_of, nearest_parameter, option_of
from neurogen.contract.sampler import Sampler
from neurogen.contract.spec import parse_spec
from neurogen.errors import NeurogenError, PluginError
from neurogen.registry.registry import SAMPLERS, Plugin, Registry, default_registry

__all__ = [
    "OPTION_NAME",
    "CommandOfSampler",
    "CommandWithSampler",
    "SamplerOption",
    "complete_sampler",
    "make_sampler",
    "profile_option",
    "require_sampler",
    "sampler_names",
    "unknown_option",
]

OPTION_NAME = re.compile(r"--[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")
DESTINATION = "sampler_parameter_"
SHORT = len("--xyz")
"""Options up to this length resemble each other by chance, so they are not suggested for each other."""

PROFILES = ("llamacpp", "transformers", "vllm")
PROFILE = "neurogen.profile"
Command = TypeVar("Command", bound=Callable[..., Any])


class SamplerOption(ParameterOption):
    """One parameter of a sampler."""

    def __init__(self, plugin: Plugin, cls: type[Sampler], parameter: str) -> None:
        self.section = f"Options of {plugin.name} ({plugin.origin})"
        field = cls.Params.model_fields[parameter]
        notes = [domain_of(field), f"default: {field.default}"]
        super().__init__(ParameterType(cls.name, parameter, field), DESTINATION + parameter, notes)


class CommandWithSampler(click.Command):
    """A command with `--sampler` before its sampler is known; it hands over to a `CommandOfSampler`."""

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
        chosen = CommandOfSampler(self, name)
        extra["default_map"] = chosen.defaults(parent, name)
        return chosen.make_context(f"{info_name} --sampler {name}", args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and how to see a sampler's."""
        write_sections(ctx, formatter, self.get_params(ctx))
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
        self.own = self.options_beside(base)
        super().__init__(
            base.name,
            params=[*base.params, *self.own],
            callback=base.callback,
            help=base.help,
            context_settings=base.context_settings,
        )

    def options_beside(self, base: click.Command) -> list[SamplerOption]:
        """The sampler's options, none of which may be one of the command's own."""
        owners = {option: "neurogen run" for param in base.params for option in (*param.opts, *param.secondary_opts)}
        owners |= {"--help": "neurogen run", "--debug": "neurogen run"}
        for name, field in self.sampler_class.Params.model_fields.items():
            option = option_of(name, field)
            if not OPTION_NAME.fullmatch(option):
                raise self._unusable(f"its parameter {name!r} asks for the option {option!r}, which is not valid")
            for spelling in (option, negated(option)) if field.annotation is bool else (option,):
                if spelling in owners:
                    taken = f"{spelling}, which {owners[spelling]} has already"
                    raise self._unusable(f"its parameter {name!r} asks for the option {taken}")
                owners[spelling] = f"its parameter {name!r}"
        return [SamplerOption(self.plugin, self.sampler_class, name) for name in self.sampler_class.Params.model_fields]

    def _unusable(self, cause: str) -> PluginError:
        plugin = self.plugin
        return PluginError(
            f"The sampler {plugin.name!r} of {plugin.origin} ({plugin.value}) cannot be used from the command line: "
            f"{cause}. Its author has to give that parameter another option; from Python the sampler works."
        )

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
        """As click does, with an explanation for an option that does not exist."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            others = [option for param in self.params for option in param.opts]
            message = unknown_option(error.option_name, self.sampler_class, default_registry(), others)
            raise click.UsageError(message, ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sampler's options in a section of their own, first."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        write_sections(ctx, formatter, sorted(options, key=lambda option: option not in self.own))


def make_sampler(registry: Registry, name: str, values: dict[str, Any], ctx: click.Context) -> Sampler:
    """Make the sampler out of what the command line gave; its options are taken out of `values`.

    Raises:
        click.BadParameter: a value outside its domain.
    """
    options = {param.parameter: param for param in ctx.command.params if isinstance(param, SamplerOption)}
    given = {parameter: values.pop(DESTINATION + parameter) for parameter in options}
    with naming_option(ctx, options):
        return registry.load_sampler(name, **{key: value for key, value in given.items() if value is not None})


def _options_of(cls: type[Sampler]) -> dict[str, str]:
    """Option -> parameter of a sampler."""
    return {option_of(name, field): name for name, field in cls.Params.model_fields.items()}


def unknown_option(option: str, cls: type[Sampler], registry: Registry, others: Iterable[str]) -> str:
    """The message for an option that neither the command nor the sampler has: what there is, and whose option it is."""
    own = _options_of(cls)
    parameters = {"--" + name.replace("_", "-"): known for known, name in own.items()}
    message = f"No such option {option!r}: {cls.name} has {listed(own) if own else 'no options of its own'}"
    owners = _owners(option, registry)
    if owners:
        return f"{message}; {option} belongs to {listed(owners)}."
    alike = difflib.get_close_matches(option, [*own, *others], n=1)
    meant = nearest_parameter(cls.Params, option.lstrip("-"))
    of_sampler = next((spelling for spelling, name in own.items() if name == meant), None)
    near = parameters.get(option) or next(iter(alike if len(option) > SHORT else []), of_sampler)
    return f"{message}. Did you mean {near}?" if near else f"{message}."


def _owners(option: str, registry: Registry) -> list[str]:
    classes: Mapping[str, type[Sampler] | None] = {plugin.name: plugin.sampler_class for plugin in registry.load_all()}
    return [name for name, cls in classes.items() if cls is not None and option in _options_of(cls)]


def sampler_names() -> list[str]:
    """Names of the samplers that may be used."""
    return sorted({plugin.name for plugin in default_registry().plugins() if plugin.status != "disabled"})


def _can_be_loaded(name: str) -> bool:
    try:
        default_registry().load_class(name)
    except NeurogenError:
        return False
    return True


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
