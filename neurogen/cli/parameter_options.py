"""Options from a plugin's parameter schema: their spelling, help and type. Knows no command and no kind of plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from pydantic.fields import FieldInfo

from neurogen.contract.parameters import domain_of, option_of
from neurogen.errors import ParameterError

__all__ = ["ParameterOption", "ParameterType", "naming_option", "negated"]

METAVARS: Mapping[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


class ParameterType(click.ParamType[Any]):
    """Text from the command line as the type of a parameter; its bounds are checked by the schema.

    Args:
        plugin: whose parameter it is, for messages.
        parameter, field: its name and declaration.
    """

    def __init__(self, plugin: str, parameter: str, field: FieldInfo) -> None:
        self.name = METAVARS.get(field.annotation, "VALUE").lower()
        self.plugin = plugin
        self.parameter = parameter
        self.field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as a number or text."""
        try:
            return (self.field.annotation or str)(value)
        except ValueError:
            self.fail(f"{self.plugin}: {self.parameter} must be {domain_of(self.field)}, got {value!r}.", param, ctx)


class ParameterOption(click.Option):
    """One parameter of a plugin; None where the user does not give it.

    Args:
        kind: the type of the option.
        destination: under which name the command gets the value.
        notes: what the help says in brackets.
        metavar: what the help calls the value, where its type does not say enough.

    Attributes:
        parameter: its name in the schema.
    """

    def __init__(self, kind: ParameterType, destination: str, notes: Sequence[str], metavar: str | None = None) -> None:
        self.parameter = kind.parameter
        option, flag = option_of(kind.parameter, kind.field), kind.field.annotation is bool
        description = kind.field.description
        super().__init__(
            [f"{option}/{negated(option)}" if flag else option, destination],
            type=None if flag else kind,
            default=None,
            metavar=None if flag else metavar or kind.name.upper(),
            help=f"{description}  [{'; '.join(notes)}]" if notes else description,
        )


def negated(option: str) -> str:
    """The spelling that switches off an option that says yes or no."""
    return f"--no-{option.removeprefix('--')}"


@contextmanager
def naming_option(ctx: click.Context, options: Mapping[str, click.Parameter]) -> Iterator[None]:
    """Turn an error about a parameter into click's, which names the option.

    Args:
        ctx: of the command.
        options: the options of the parameters that may be wrong.

    Raises:
        click.BadParameter: one of them is.
    """
    try:
        yield
    except ParameterError as error:
        if error.parameter is None or error.parameter not in options:
            raise
        raise click.BadParameter(str(error), ctx=ctx, param=options[error.parameter]) from None
