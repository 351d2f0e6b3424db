"""`neurogen config`: the values in force for the options of every command, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from neurogen.cli.common import debug_option, echo_table, tell, write_json
from neurogen.cli.configuration import Section, files_looked_at, key_of, plugin_lists, read_configuration, source_of
from neurogen.cli.sampler_options import SamplerOption

__all__ = ["command"]

BUILT_IN = "built in"
Lists = Mapping[str, Sequence[str]]
LENIENT: Mapping[str, Any] = {"resilient_parsing": True, "ignore_unknown_options": True}
"""Contexts that are made to be looked at: what is required may be missing."""


@click.command("config")
@click.argument("commands", metavar="[COMMAND]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Also what nobody has set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all values instead of a table.")
@click.option("--quiet", "-q", is_flag=True, help="No word about the files that were read.")
@debug_option
@click.pass_context
def command(ctx: click.Context, /, commands: Sequence[str], everything: bool, as_json: bool, quiet: bool) -> None:
    """Show the defaults in force, and where each comes from; of every command, or of those named.

    A value on the command line comes first, then the environment variable, then neurogen.toml and [tool.neurogen] of
    pyproject.toml in the working directory, then the user's own file, then what is built in.
    """
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    known = root.command.list_commands(root)
    for name in commands:
        if name not in known:
            raise click.UsageError(f"There is no command {name!r}. There are: {', '.join(known)}.", ctx)
    settings = _settings(root, root.command, ())
    found = [one for one in settings if not commands or one["command"].split()[0] in commands]
    chosen = root.params.get("config_file")
    lists = {file.path: plugin_lists(file) for file in read_configuration(chosen)}
    if as_json:
        files = [_file(path, lists.get(path)) for path in files_looked_at(chosen)]
        write_json({"files": files, "options": found}, default=str)
        return
    shown = [one for one in found if everything or commands or one["source"] != BUILT_IN]
    if shown:
        echo_table(("COMMAND", "OPTION", "VALUE", "FROM", "VARIABLE"), map(_row, shown))
    if not quiet:
        _tell_files(files_looked_at(chosen), lists)
        if len(shown) < len(found):
            left = len(found) - len(shown)
            tell(f"{left} options have their built-in values: neurogen config --all shows them.")


def _settings(ctx: click.Context, command: click.Command, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The options of a command, of the samplers that have a section in a file, and of the commands below it."""
    yield from _of_options(ctx, " ".join(path), ctx.command.get_params(ctx))
    for sampler in sorted(ctx.default_map.samplers) if isinstance(ctx.default_map, Section) else ():
        chosen = ["--sampler", sampler] if any("--sampler" in param.opts for param in command.params) else [sampler]
        other = command.make_context(path[-1], list(chosen), ctx.parent, **LENIENT)
        own = [param for param in other.command.params if isinstance(param, SamplerOption)]
        if ctx.params.get("sampler") != sampler:
            yield from _of_options(other, " ".join([*path, *chosen]), own)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from _settings(below.make_context(name, [], ctx, **LENIENT), below, (*path, name))


def _of_options(ctx: click.Context, command: str, params: Sequence[click.Parameter]) -> Iterator[dict[str, Any]]:
    for param in params:
        option = key_of(param)
        if option is not None and param.envvar is not None:
            source = source_of(ctx, param)
            value = param.consume_value(ctx, {})[0] if source else ctx.params.get(str(param.name))
            said = {"value": value, "source": source or BUILT_IN, "variable": param.envvar}
            yield {"command": command, "option": option, **said}


def _file(path: Path, lists: Lists | None) -> dict[str, Any]:
    plugins = None if lists is None else {"allow": lists.get("allow"), "disable": lists.get("disable", [])}
    return {"path": str(path), "read": lists is not None, "plugins": plugins}


def _row(setting: dict[str, Any]) -> list[str]:
    value = setting["value"]
    text = "-" if value in (None, ()) else value if isinstance(value, str) else json.dumps(value, default=str)
    return [*{**setting, "value": text}.values()]


def _tell_files(looked_at: Sequence[Path], read: Mapping[Path, Lists]) -> None:
    tell(f"Read: {', '.join(map(str, read)) or 'none'}. Looked for: {', '.join(map(str, looked_at))}.")
    for path, lists in read.items():
        for name, plugins in lists.items():
            tell(f"Plugins: {path} has {name} = {json.dumps(plugins)}.")
