"""Command line options out of a sampler's parameter schema, and back. Knows no particular sampler."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import click
from pydantic.fields import FieldInfo

from neurogen.cli.common import listed
from neurogen.contract.parameters import domain_of, nearest_parameter, option_of
from neurogen.contract.sampler import Sampler
from neurogen.errors import ParameterError, PluginError
from neurogen.registry.registry import Plugin, Registry

__all__ = [
    "METAVARS",
    "FieldType",
    "SamplerOption",
    "make_sampler",
    "negated",
    "options_of",
    "sampler_options",
    "unknown_option",
]

OPTION_NAME = re.compile(r"--[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")
DESTINATION = "sampler_parameter_"
SHORT = len("--xyz")
"""Options up to this length are alike by chance."""
METAVARS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


class SamplerOption(click.Option):
    """One parameter of a sampler; None where the user does not give it.

    Attributes:
        parameter: its name in the schema.
    """

    def __init__(self, sampler: str, parameter: str, field: FieldInfo) -> None:
        self.parameter = parameter
        option = option_of(parameter, field)
        flag = field.annotation is bool
        shown = f"{option}/{negated(option)}" if flag else option
        super().__init__(
            [shown, DESTINATION + parameter],
            type=None if flag else FieldType(sampler, parameter, field),
            default=None,
            metavar=None if flag else METAVARS.get(field.annotation, "VALUE"),
            help=f"{field.description}  [{domain_of(field)}; default: {field.default}]",
        )


class FieldType(click.ParamType[Any]):
    """Text from the command line as the type of a field; bounds are the schema's own affair."""

    def __init__(self, sampler: str, parameter: str, field: FieldInfo) -> None:
        self.name = METAVARS.get(field.annotation, "VALUE").lower()
        self.sampler = sampler
        self.parameter = parameter
        self.field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as a number or text."""
        try:
            return (self.field.annotation or str)(value)
        except ValueError:
            self.fail(f"{self.sampler}: {self.parameter} must be {domain_of(self.field)}, got {value!r}.", param, ctx)


def options_of(cls: type[Sampler]) -> dict[str, str]:
    """Option -> parameter of a sampler."""
    return {option_of(name, field): name for name, field in cls.Params.model_fields.items()}


def sampler_options(plugin: Plugin, cls: type[Sampler], taken: Iterable[str]) -> list[SamplerOption]:
    """The options of a sampler.

    Args:
        plugin: where the sampler comes from, for messages.
        cls: the sampler.
        taken: options that the command has already.

    Raises:
        PluginError: an option is none, or is one of those already taken.
    """
    owners = dict.fromkeys(taken, "neurogen run")
    options: list[SamplerOption] = []
    for name, field in cls.Params.model_fields.items():
        option = option_of(name, field)
        if not OPTION_NAME.fullmatch(option):
            raise _unusable(plugin, f"its parameter {name!r} asks for the option {option!r}, which is none")
        for spelling in (option, negated(option)) if field.annotation is bool else (option,):
            if spelling in owners:
                cause = f"its parameter {name!r} asks for the option {spelling}, which {owners[spelling]} has already"
                raise _unusable(plugin, cause)
            owners[spelling] = f"its parameter {name!r}"
        options.append(SamplerOption(cls.name, name, field))
    return options


def make_sampler(registry: Registry, name: str, values: dict[str, Any], ctx: click.Context) -> Sampler:
    """Make the sampler out of what the command line gave; its options are taken out of `values`.

    Raises:
        click.BadParameter: a value outside its domain.
    """
    options = {param.parameter: param for param in ctx.command.params if isinstance(param, SamplerOption)}
    given = {parameter: values.pop(DESTINATION + parameter) for parameter in options}
    try:
        return registry.load_sampler(name, **{key: value for key, value in given.items() if value is not None})
    except ParameterError as error:
        if error.parameter not in options:
            raise
        raise click.BadParameter(str(error), ctx=ctx, param=options[error.parameter]) from None


def unknown_option(option: str, cls: type[Sampler], registry: Registry, others: Iterable[str]) -> str:
    """The message for an option that neither the command nor the sampler has: what there is, and whose option it is."""
    own = options_of(cls)
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
    return [name for name, cls in classes.items() if cls is not None and option in options_of(cls)]


def negated(option: str) -> str:
    """The option that says no, of one that says yes or no."""
    return f"--no-{option.removeprefix('--')}"


def _unusable(plugin: Plugin, cause: str) -> PluginError:
    return PluginError(
        f"The sampler {plugin.name!r} of {plugin.origin} ({plugin.value}) cannot be used from the command line: "
        f"{cause}. Its author has to give that parameter another option; from Python the sampler works."
    )
