"""The options that `neurogen bench` takes from the installed samplers, and the samplers made from these options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from neurogen.cli.common import listed, tell, unambiguous_names, write_sections
from neurogen.cli.configuration import variable_of
from neurogen.cli.parameter_options import ParameterType, naming_option
from neurogen.cli.sampler_options import OPTION_NAME, unknown_option
from neurogen.contract.parameters import option_of
from neurogen.contract.sampler import Sampler
from neurogen.errors import PluginError
from neurogen.registry.registry import SAMPLERS, Plugin, Registry, default_registry

__all__ = ["BenchCommand", "SharedOption", "load_samplers"]

DESTINATION = "shared_parameter_"
Owner = tuple[Plugin, str, FieldInfo]


class SharedType(click.types.StringParamType):
    """Text that each sampler reads by its own schema."""

    name = "value"


class SharedOption(click.Option):
    """An option of one or several samplers, each of which reads its text by its own schema.

    Attributes:
        option: as it is typed.
        owners: who has it.
    """

    section = "Options of the samplers"

    def __init__(self, option: str, owners: Sequence[Owner], number: int) -> None:
        self.option = option
        self.owners = owners
        said = [f"{plugin.name}: {field.description} Default {field.default}." for plugin, _, field in owners]
        super().__init__(
            [option, f"{DESTINATION}{number}"],
            type=SharedType(),
            default=None,
            metavar="VALUE",
            help=" ".join(said),
            envvar=variable_of(("bench",), option.lstrip("-")),
        )


class BenchCommand(click.Command):
    """`bench` with the options of every sampler that can be loaded, beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own parameters, then the samplers'."""
        own = super().get_params(ctx)
        taken = {option for param in own for option in param.opts}
        return [*own, *_shared_options(default_registry(), taken)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with an explanation for an option that does not exist."""
        typed = list(args)  # the parser empties its own
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(_no_such_option(error, typed), ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The samplers' options in a section of their own."""
        write_sections(ctx, formatter, self.get_params(ctx))


def load_samplers(
    ctx: click.Context, registry: Registry, names: Sequence[str], values: dict[str, Any]
) -> list[Sampler]:
    """Make the samplers to be measured; their options are taken out of `values`.

    Args:
        ctx: of the command, for messages.
        registry: where they are.
        names: as the user gave them; none means every sampler that can be loaded.
        values: what the command line gave.

    Raises:
        PluginError: one cannot be found or loaded, or no sampler is installed.
        click.BadParameter: a value outside its domain.
        click.UsageError: an option of a sampler that is not measured.
    """
    chosen = list(dict.fromkeys(names)) or _all_that_load(registry)
    shared = {param.name: param for param in ctx.command.get_params(ctx) if isinstance(param, SharedOption)}
    given = {param: text for name, param in shared.items() if (text := values.pop(str(name), None)) is not None}
    plugins = {name: registry.find(name) for name in chosen}
    for param in given:
        if ctx.get_parameter_source(str(param.name)) == ParameterSource.COMMANDLINE:  # a default may be idle
            _refuse_idle(ctx, param, list(plugins.values()))
    return [_made(ctx, registry, name, plugin, given) for name, plugin in plugins.items()]


def _shared_options(registry: Registry, taken: set[str]) -> list[SharedOption]:
    """Options of the samplers, without those that the command itself has already."""
    owners: dict[str, list[Owner]] = {}
    for plugin in registry.load_all():
        fields = plugin.sampler_class.Params.model_fields if plugin.sampler_class is not None else {}
        for name, field in fields.items():
            option = option_of(name, field)
            if option not in {*taken, "--help", "--debug"} and OPTION_NAME.fullmatch(option):
                owners.setdefault(option, []).append((plugin, name, field))
    return [SharedOption(option, has, number) for number, (option, has) in enumerate(owners.items())]


def _all_that_load(registry: Registry) -> list[str]:
    plugins = [plugin for plugin in registry.load_all() if plugin.status != "disabled"]
    for plugin in plugins:
        if plugin.error is not None:
            tell(f"Left out: {plugin.error}")
    usable = [plugin for plugin in plugins if plugin.sampler_class is not None]
    if not usable:
        raise PluginError(f"There is no sampler to measure. Install one, for example `{SAMPLERS.example}`.")
    return unambiguous_names(usable)


def _refuse_idle(ctx: click.Context, option: SharedOption, plugins: Sequence[Plugin]) -> None:
    if not any(owner in plugins for owner, _, _ in option.owners):
        whose = listed(sorted({owner.name for owner, _, _ in option.owners}))
        names = listed(plugin.name for plugin in plugins)
        raise click.UsageError(
            f"{option.option} belongs to {whose}, and {names} is measured: leave it out, or name {whose} too.", ctx
        )


def _made(
    ctx: click.Context, registry: Registry, name: str, plugin: Plugin, given: Mapping[SharedOption, str]
) -> Sampler:
    options: dict[str, SharedOption] = {}
    values: dict[str, Any] = {}
    for option, text in given.items():
        for owner, parameter, field in option.owners:
            if owner is plugin:
                kind = click.BOOL if field.annotation is bool else ParameterType(plugin.name, parameter, field)
                options[parameter], values[parameter] = option, kind.convert(text, option, ctx)
    with naming_option(ctx, options):
        return registry.load_sampler(name, **values)


def _no_such_option(error: click.NoSuchOption, typed: Sequence[str]) -> str:
    """The message for an option that does not exist: what the first sampler named has instead, or click's words."""
    registry = default_registry()
    classes = {plugin.name: plugin.sampler_class for plugin in registry.plugins()}
    named = next((cls for word in typed if (cls := classes.get(word)) is not None), None)
    return unknown_option(error.option_name, named, registry, ()) if named else error.format_message()
