"""`neurogen config`: the values in force for the options of every command, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from neurogen.cli.common import Settings, debug_option, echo_table, tell, write_json
from neurogen.cli.configuration import files_looked_at
from neurogen.cli.configured import Defaults, key_of
from neurogen.cli.sampler_options import SamplerOption

__all__ = ["command"]

BUILT_IN = "built in"
LENIENT: Mapping[str, Any] = {"resilient_parsing": True, "ignore_unknown_options": True}
"""Contexts that are made to be looked at: what is required may be missing."""


@dataclass(frozen=True)
class Setting:
    """One option of one command.

    Attributes:
        command: its name, with spaces where it is below another.
        option: as in files, without dashes.
        value: in force where the command line says nothing; None where there is none.
        source: where the value comes from.
        variable: the environment variable that gives it.
    """

    command: str
    option: str
    value: Any
    source: str
    variable: str


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
    settings = ctx.find_object(Settings)
    assert settings is not None
    assert isinstance(root.command, click.Group)
    defaults = settings.defaults or Defaults()
    for name in commands:
        if name not in root.command.list_commands(root):
            known = ", ".join(root.command.list_commands(root))
            raise click.UsageError(f"There is no command {name!r}. There are: {known}.", ctx)
    found = [entry for entry in _settings(root, defaults) if not commands or entry.command.split()[0] in commands]
    if as_json:
        files = _files(root, defaults)
        write_json({"files": files, "options": [asdict(entry) for entry in found]}, default=str)
        return
    shown = [entry for entry in found if everything or commands or entry.source != BUILT_IN]
    if shown:
        echo_table(("COMMAND", "OPTION", "VALUE", "FROM", "VARIABLE"), map(_row, shown))
    if not quiet:
        _tell_files(root, defaults, left_out=len(found) - len(shown))


def _settings(root: click.Context, defaults: Defaults) -> Iterator[Setting]:
    program = root.command
    assert isinstance(program, click.Group)
    for name in program.list_commands(root):
        command = program.get_command(root, name)
        assert command is not None
        yield from _of_command(root, defaults, command, (name,))


def _of_command(
    parent: click.Context, defaults: Defaults, command: click.Command, path: tuple[str, ...]
) -> Iterator[Setting]:
    ctx = command.make_context(path[-1], [], parent, **LENIENT)
    yield from _of_options(ctx, defaults, path, " ".join(path), ctx.command.get_params(ctx))
    for sampler in sorted({name for whose, name in defaults.samplers if whose == path}):
        chosen = ["--sampler", sampler] if any("--sampler" in param.opts for param in command.params) else [sampler]
        other = command.make_context(path[-1], list(chosen), parent, **LENIENT)
        own = [param for param in other.command.params if isinstance(param, SamplerOption)]
        if ctx.params.get("sampler") != sampler:
            yield from _of_options(other, defaults, path, " ".join([*path, *chosen]), own)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from _of_command(ctx, defaults, below, (*path, name))


def _of_options(
    ctx: click.Context, defaults: Defaults, path: tuple[str, ...], shown: str, params: Sequence[click.Parameter]
) -> Iterator[Setting]:
    for param in params:
        key = key_of(param)
        if key is None or not isinstance(param.envvar, str):
            continue
        value, source = param.consume_value(ctx, {})
        ctx.set_parameter_source(str(param.name), source)
        origin = defaults.source(path, param, ctx)
        set_by_somebody = source in (ParameterSource.DEFAULT_MAP, ParameterSource.ENVIRONMENT)
        plain = value if set_by_somebody else ctx.params.get(str(param.name))
        yield Setting(shown, key, plain, origin.place if origin else BUILT_IN, param.envvar)


def _files(root: click.Context, defaults: Defaults) -> list[dict[str, Any]]:
    """Every file that is looked for, the strongest first, and what it says of plugins."""
    read = {file.path: file for file in defaults.files}
    return [
        {
            "path": str(path),
            "read": path in read,
            "plugins": {"allow": read[path].plugins.allow, "disable": read[path].plugins.disable}
            if path in read
            else None,
        }
        for path in files_looked_at(root.params.get("config_file"))
    ]


def _row(setting: Setting) -> tuple[str, ...]:
    value = setting.value
    text = "-" if value in (None, ()) else value if isinstance(value, str) else json.dumps(value, default=str)
    return setting.command, setting.option, text, setting.source, setting.variable


def _tell_files(root: click.Context, defaults: Defaults, *, left_out: int) -> None:
    looked = files_looked_at(root.params.get("config_file"))
    read = {file.path for file in defaults.files}
    tell(f"Read: {_names(path for path in looked if path in read)}. Looked for: {_names(looked)}.")
    for file in defaults.files:
        lists = {"allow": file.plugins.allow, "disable": file.plugins.disable or None}
        for name, plugins in lists.items():
            if plugins is not None:
                tell(f"Plugins: {file.path} has {name} = {json.dumps(plugins)}.")
    if left_out:
        tell(f"{left_out} options have their built-in values: neurogen config --all shows them.")


def _names(paths: Iterator[Path] | Sequence[Path]) -> str:
    return ", ".join(map(str, paths)) or "none"
