"""Command line options for logits processors: `--processor SPEC` for any, and own options for those of neurogen itself.

The direct options come from the processors' own schemas. Whatever the order on the command line, the processors work in
one order: penalties, DRY, biases, then those of `--processor` as they are given, then what bans tokens, grammars last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from neurogen.cli.parameter_options import ParameterOption, ParameterType
from neurogen.contract.parameters import domain_of, option_of
from neurogen.contract.processor import Processor
from neurogen.errors import ParameterError
from neurogen.processors import FIRST_PARTY
from neurogen.processors.listing import quoted
from neurogen.registry.registry import PROCESSORS, Registry, default_registry

__all__ = ["direct_option", "make_processors", "processor_options"]

SECTION = "Processors, which change logits before the sampler"
OTHERS_COME_BEFORE = "no-repeat-ngram"
"""Processors of `--processor` come after whatever shifts logits and before this one, the first that bans."""

BANNED = "banned-texts"
WITHOUT_OPTION = frozenset({"checksum"})
HINTS: Mapping[str, str] = {
    "json_schema": "FILE",
    "grammar": "FILE",
    "regex": "TEXT",
    "bias": "LIST",
    "tokens": "LIST",
    "texts": "LIST",
}
ALONE_IS_ENOUGH: Mapping[str, Sequence[str]] = {"grammar": ("json_schema", "regex", "grammar")}
"""Processors that several parameters ask for; all others are asked for by their first one."""


class ProcessorOption(ParameterOption):
    """One parameter of a processor of neurogen itself."""

    section = SECTION

    def __init__(self, processor: type[Processor], parameter: str) -> None:
        self.processor = processor
        field = processor.Params.model_fields[parameter]
        notes = [domain_of(field)] if field.annotation not in (str, bool) else []
        if parameter not in _asking(processor):
            notes.append(f"default: {field.default}")
        kind = ParameterType(processor.name, parameter, field)
        metavar = HINTS.get(parameter) if field.annotation is str else None
        super().__init__(kind, _destination(processor, parameter), notes, metavar)


class RepeatedOption(click.Option):
    """An option about processors that may be given several times."""

    section = SECTION

    def __init__(self, option: str, destination: str, metavar: str, **attributes: Any) -> None:
        super().__init__([option, destination], multiple=True, metavar=metavar, callback=_not_empty, **attributes)


def processor_options(command: click.Command) -> click.Command:
    """Let a command accept `--processor`, `--ban` and the direct options; `make_processors` reads them."""
    any_processor = "A processor of any plugin, as NAME or NAME(parameter=value). See neurogen processors. Repeatable."
    command.params += [
        RepeatedOption("--processor", "processor_specs", "SPEC", help=any_processor, shell_complete=_complete),
        *(ProcessorOption(cls, name) for cls in FIRST_PARTY for name in cls.Params.model_fields if _has_option(name)),
        RepeatedOption("--ban", "banned_texts", "TEXT", help="A text that must not occur. Repeatable."),
    ]
    return command


def make_processors(registry: Registry, values: dict[str, Any], ctx: click.Context) -> list[Processor]:
    """Make the processors out of what the command line gave; their options are taken out of `values`.

    Returns:
        them in the order in which they work.

    Raises:
        click.BadParameter: a value outside its domain.
        click.UsageError: an option without the one that asks for its processor.
        NeurogenError: a processor cannot be loaded or made.
    """
    specs = values.pop("processor_specs")
    banned = values.pop("banned_texts")
    made: list[Processor] = []
    for cls in FIRST_PARTY:
        if cls.name == OTHERS_COME_BEFORE:
            for spec in specs:
                made += registry.load_processors(spec)
        given = {name: values.pop(_destination(cls, name)) for name in cls.Params.model_fields if _has_option(name)}
        params = {name: value for name, value in given.items() if value is not None}
        if cls.name == BANNED and banned:
            params["texts"] = _joined(params.get("texts"), banned, ctx)
        if params:
            _check_asked(cls, params, ctx)
            made.append(_made(registry, cls, params, ctx))
    return made


def direct_option(cls: type[Processor], parameter: str) -> str | None:
    """The command line's own option for a parameter, or None."""
    if cls not in FIRST_PARTY or not _has_option(parameter):
        return None
    return option_of(parameter, cls.Params.model_fields[parameter])


def _not_empty(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> Sequence[str]:
    if not all(text.strip() if param.name == "processor_specs" else text for text in value):
        raise click.BadParameter("it must not be empty.")
    return value


def _made(registry: Registry, cls: type[Processor], params: Mapping[str, Any], ctx: click.Context) -> Processor:
    options = [param for param in ctx.command.params if isinstance(param, ProcessorOption)]
    own = {option.parameter: option for option in options if option.processor is cls}
    try:
        return registry.load_processor(cls.name, **params)
    except ParameterError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=own.get(error.parameter or "")) from error


def _check_asked(cls: type[Processor], params: Mapping[str, Any], ctx: click.Context) -> None:
    """Refuse options that shape a processor which nothing asks for."""
    asking = _asking(cls)
    if not any(name in params for name in asking):
        first, needed = direct_option(cls, next(iter(params))), direct_option(cls, asking[0])
        raise click.UsageError(f"{first} says how {cls.name} works: it needs {needed}, which asks for it.", ctx)


def _asking(cls: type[Processor]) -> Sequence[str]:
    first = next(name for name in cls.Params.model_fields if _has_option(name))
    return ALONE_IS_ENOUGH.get(cls.name, (first,))


def _joined(listed: str | None, texts: Sequence[str], ctx: click.Context) -> str:
    """What --ban and --ban-texts list together."""
    if listed is not None and listed.lstrip().startswith("@"):
        raise click.UsageError("Give either --ban TEXT or --ban-texts @FILE, not both; add the text to the file.", ctx)
    inner = listed.strip().removeprefix("[").removesuffix("]") if listed is not None else ""
    return ", ".join([*([inner] if inner else []), *map(quoted, texts)])


def _has_option(parameter: str) -> bool:
    return parameter not in WITHOUT_OPTION


def _destination(cls: type[Processor], parameter: str) -> str:
    return f"processor_{cls.name.replace('-', '_')}_{parameter}"


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    plugins = default_registry().plugins(PROCESSORS)
    names = sorted({plugin.name for plugin in plugins if plugin.status != "disabled"})
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
