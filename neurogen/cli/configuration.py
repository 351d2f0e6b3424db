"""Defaults of options from configuration files and environment variables.

Click chooses among them, by `default_map`, `envvar` and `ParameterSource`. Here is what it does not know: where the
files are, which option a key means, where a value stands, which plugins a file allows, the parameters of a sampler in
`[run.samplers.topk]`, and which names are misspelt. This module knows how commands are built, but no command by name.
Files are data: TOML is read, nothing in it is run.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from neurogen.cli.common import commands_of
from neurogen.contract.parameters import option_of
from neurogen.contract.spec import parse_spec
from neurogen.errors import DataError, NeurogenError
from neurogen.files import decoded, is_there
from neurogen.registry.registry import Plugin, default_registry

__all__ = [
    "ConfigurationError",
    "Entry",
    "Section",
    "check_variables",
    "files_looked_at",
    "key_of",
    "name_variables",
    "parse_configuration",
    "plugin_lists",
    "read_configuration",
    "source_of",
    "variable_of",
]

SHARED_FILE = "pyproject.toml"
SHARED_TABLE = ("tool", "neurogen")
LONGEST, SHOWN = 1_000_000, 60
"""Bytes of a file that are read at most, and characters of a value in a message."""

PLUGINS = "plugins"
PLUGIN_LISTS = ("allow", "disable")
SAMPLERS = "samplers"
NOT_CONFIGURED = frozenset({"help", "version", "debug", "config-file", "only-plugins"})
"""Options that are no defaults: they stop the command, or say where defaults are."""

PREFIX = "NEUROGEN"
OTHER_VARIABLES = (
    "NEUROGEN_DISABLE_PLUGINS", "NEUROGEN_ONLY_PLUGINS", "NEUROGEN_DEBUG", "NEUROGEN_CACHE", "NEUROGEN_CONFIG_FILE",
    "NEUROGEN_CUDA_PIECES",
)  # fmt: skip
"""Variables that belong to no option of a command."""

ALIKE, ALIKE_WORD = 0.9, 0.66
"""How alike a whole variable, and the word after its prefix, are to one that is meant."""

Kind = tuple[str, tuple[type, ...]]
TABLE: Kind = ("a table", (dict,))
NAME: Kind = ("the name of a plugin or of a distribution", (str,))
TEXT: Kind = ("a text", (str,))
KINDS: dict[str, Kind] = {
    "boolean": ("true or false", (bool,)),
    "integer": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "number": ("a number", (int, float)),
    "value": ("a number, a text, true or false", (str, int, float, bool)),
}
"""What a value must be in a file, by the first word of the name of its option's type; all others are texts."""


class ConfigurationError(DataError):
    """A file of defaults, or an environment variable, holds something that cannot be used."""


@dataclass(frozen=True)
class Entry:
    """A value in a configuration file, and where it stands there: `path`, `keys`."""

    path: Path
    keys: tuple[str, ...]
    value: Any

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        plain = (key.isascii() and key.replace("-", "").replace("_", "").isalnum() for key in self.keys)
        keys = (key if as_it_is else _shown(key) for key, as_it_is in zip(self.keys, plain, strict=True))
        return f"{self.path}, key {'.'.join(keys)}"

    def wrong(self, problem: str) -> ConfigurationError:
        """The error for what stands here."""
        end = "" if problem.endswith((".", "?")) else "."
        return ConfigurationError(f"{self.place}: {problem}{end} Correct it, or take it out.")

    def checked(self, kind: Kind, *, repeated: bool = False) -> Any:
        """The value, which must be of this kind, or a list of such values.

        Raises:
            ConfigurationError: it is not.
        """
        words, types = kind
        values = self.value if repeated else [self.value]
        if isinstance(values, list) and all(type(value) in types for value in values):
            return self.value
        raise self.wrong(f"it must be {'a list, each of it ' if repeated else ''}{words}, got {_shown(self.value)}")

    def entries(self) -> dict[str, Entry]:
        """What stands in this table.

        Raises:
            ConfigurationError: it is not a table.
        """
        return {key: Entry(self.path, (*self.keys, key), value) for key, value in self.checked(TABLE).items()}


def files_looked_at(chosen: str | None = None) -> list[Path]:
    """Where configuration is looked for, the strongest first; not all of them need exist.

    Args:
        chosen: the file of --config-file, in place of those of the working directory.
    """
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # raises without a home
    here = [Path("neurogen.toml"), Path(SHARED_FILE)] if chosen is None else [Path(chosen)]
    return [*here, Path(base, "neurogen", "config.toml")]


def read_configuration(chosen: str | None = None) -> list[Entry]:
    """What all files hold that there are, the strongest first.

    Raises:
        ConfigurationError: one cannot be read or is no TOML; `chosen` is not there.
    """
    if chosen is not None and not is_there(chosen):
        raise ConfigurationError(f"The configuration file {chosen} does not exist. Correct --config-file.")
    found: list[Entry] = []
    for path in files_looked_at(chosen):
        content, shared = _content(path), path.name == SHARED_FILE
        # pyproject.toml is other tools' file, too: without a table of neurogen's it is not parsed
        if content is not None and not (shared and (b"neurogen" not in content or b"tool" not in content)):
            found.append(parse_configuration(content, path, SHARED_TABLE if shared else ()))
    return found


def _content(path: Path) -> bytes | None:
    """The bytes of a file; None if there is no such file."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise ConfigurationError(f"{path} is no regular file, so no configuration can be read. Move it away.")
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise ConfigurationError(
            f"The configuration in {path} cannot be read: {error.strerror or error}. Make it readable, or move it away."
        ) from None
    if len(content) > LONGEST:
        raise ConfigurationError(f"{path} has more than {LONGEST:,} bytes, which no configuration needs. Shorten it.")
    return content


def parse_configuration(content: bytes, path: Path, within: Sequence[str] = ()) -> Entry:
    """The table in the bytes of a file.

    Args:
        content: TOML in UTF-8.
        path: named in messages.
        within: the tables in which neurogen's own lies.

    Raises:
        ConfigurationError: they are no TOML, or something else than a table is there.
    """
    try:
        table = Entry(path, (), tomllib.loads(decoded(content)))
    except (ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ConfigurationError(f"{path} is no TOML file that can be read: {cause}. Correct it.") from None
    for name in within:
        table = table.entries().get(name, Entry(path, (*table.keys, name), {}))
    plugin_lists(table)
    return table


def plugin_lists(file: Entry) -> dict[str, list[str]]:
    """The lists `allow` and `disable` of the section `plugins`, those that the file has.

    Raises:
        ConfigurationError: one is no list of names.
    """
    section = file.entries().get(PLUGINS)
    given = section.entries() if section is not None else {}
    return {name: given[name].checked(NAME, repeated=True) for name in PLUGIN_LISTS if name in given}


class Section(dict[str, Any]):
    """The defaults that files give to one command: click's `default_map`, which knows where its values stand.

    A value lies below the name of the option's parameter, the section of a subcommand below the subcommand's name.

    Args:
        command: the command; the whole program where `path` is empty.
        path: the words that call it, without the program's name.
    """

    def __init__(self, command: click.Command, path: Sequence[str] = ()) -> None:
        super().__init__()
        self.command = command
        self.path = path
        self.places: dict[str, str] = {}
        self.samplers: dict[str, list[Entry]] = {}

    def read(self, table: Entry, ctx: click.Context) -> None:
        """Take the values of a table, which is stronger than those read before.

        Raises:
            ConfigurationError: a section or a key that means nothing, or a value of a wrong type.
        """
        for key, entry in table.entries().items():
            name = key.replace("_", "-")
            below = self.command.get_command(ctx, name) if isinstance(self.command, click.Group) else None
            if below is not None:
                self.setdefault(name, Section(below, (*self.path, name))).read(entry, ctx)
            elif name == SAMPLERS and _takes_sampler(self.command):
                for parameters in entry.entries().values():
                    self._read_sampler(parameters)
            elif not (self.path == (PLUGINS,) and name in PLUGIN_LISTS):
                option = next((one for one in _options(self.command, ctx) if key_of(one) == name), None)
                if option is None:
                    raise entry.wrong(self._unknown(name, ctx))
                self._set(option, entry)

    def _read_sampler(self, parameters: Entry) -> None:
        """Keep the parameters of a sampler, which must be installed and may be disabled, until it is known."""
        known = {plugin.name for plugin in default_registry().plugins()}
        name = parameters.keys[-1]
        try:
            links = [link.name.rpartition(":")[2] for link in parse_spec(name)]
        except NeurogenError:
            links = [name]
        for link in links:
            if link not in known:
                raise parameters.wrong(f"no sampler {link!r} is installed. {_nearest(link, known)}")
        for entry in parameters.entries().values():
            self.samplers.setdefault(name, []).append(entry)

    def _set(self, option: click.Parameter, entry: Entry) -> None:
        kind = KINDS.get(option.type.name.split()[0], TEXT)
        self[str(option.name)] = entry.checked(kind, repeated=option.multiple)
        self.places[str(option.name)] = entry.place

    def _unknown(self, name: str, ctx: click.Context) -> str:
        inner = self.command.list_commands(ctx) if isinstance(self.command, click.Group) else []
        if not self.path:
            return f"there is no such section. {_nearest(name, [*inner, PLUGINS])}"
        others = [*inner, *([SAMPLERS] if _takes_sampler(self.command) else [])]
        others += PLUGIN_LISTS if self.path == (PLUGINS,) else ()
        keys = filter(None, map(key_of, _options(self.command, ctx)))
        what = f"neurogen {' '.join(self.path)} has no option --{name} for which a default can be given"
        return f"{what}. {_nearest(name, [*keys, *others])}"

    def with_sampler(self, plugin: Plugin, parameters: dict[str, click.Option], given: Collection[str]) -> Section:
        """The same with the values for a sampler.

        Args:
            plugin: the sampler.
            parameters: its parameters' names and their options.
            given: the parameters that have their values already.

        Raises:
            ConfigurationError: a key is no parameter of this sampler, or a value has a wrong type.
        """
        section = Section(self.command, self.path)
        section.update(self)
        section.places, section.samplers = dict(self.places), self.samplers
        names = {str(key_of(option)): name for name, option in parameters.items()}
        for sampler in (plugin.name, plugin.qualified_name):
            for entry in self.samplers.get(sampler, ()):
                key = entry.keys[-1]
                name = key if key in parameters else names.get(key.replace("_", "-"))
                if name is None:
                    raise entry.wrong(f"{plugin.name} has no such parameter. {_nearest(key, parameters)}")
                if name not in given:
                    section._set(parameters[name], entry)
        return section


def source_of(ctx: click.Context, param: click.Parameter) -> str | None:
    """Where the value of a parameter comes from, in words; None for the command line and what is built in."""
    source = ctx.get_parameter_source(str(param.name))
    if source == ParameterSource.DEFAULT_MAP and isinstance(ctx.default_map, Section):
        return ctx.default_map.places.get(str(param.name))
    return f"the environment variable {param.envvar}" if source == ParameterSource.ENVIRONMENT else None


def key_of(param: click.Parameter) -> str | None:
    """How an option is called in files: its longest spelling without dashes; None where it is no default."""
    if not isinstance(param, click.Option) or not param.opts:
        return None
    name = max(param.opts, key=len).lstrip("-")
    return None if name in NOT_CONFIGURED else name


def variable_of(path: Sequence[str], key: str) -> str:
    """The environment variable of an option."""
    return "_".join((PREFIX, *path, key)).upper().replace("-", "_")


def name_variables(command: click.Command, path: Sequence[str]) -> None:
    """Let every option of a command be given by its environment variable.

    Click's `auto_envvar_prefix` would take the name of the parameter, which for --json is `as_json`.
    """
    for param in command.params:
        key = key_of(param)
        if key is not None:
            param.envvar = variable_of(path, key)


def check_variables(program: click.Group, ctx: click.Context) -> None:
    """Refuse variables that begin like those of a command but belong to no option of it, or are misspelled differently.

    Raises:
        ConfigurationError: there is one.
    """
    starts = {variable_of((name,), ""): name for name in program.list_commands(ctx)}
    for variable in os.environ:
        if not variable.startswith(f"{PREFIX}_") or variable in OTHER_VARIABLES:
            continue
        name = next((name for start, name in starts.items() if variable.startswith(start)), None)
        problem = _misspelled(variable, starts) if name is None else _no_option(variable, program, ctx, name)
        if problem is not None:
            raise ConfigurationError(f"The environment variable {variable} {problem} Correct it, or unset it.")


def _misspelled(variable: str, starts: Iterable[str]) -> str | None:
    """What is wrong with a variable of no command that is nearly one of another; others are not neurogen's."""
    words = {start.split("_")[1]: f"{start}..." for start in starts}
    near = difflib.get_close_matches(variable, OTHER_VARIABLES, n=1, cutoff=ALIKE)
    alike = difflib.get_close_matches(variable.split("_")[1], words, n=1, cutoff=ALIKE_WORD)
    near += [words[word] for word in alike]
    return f"has no effect. Did you mean {near[0]}?" if near else None


def _no_option(variable: str, program: click.Group, ctx: click.Context, name: str) -> str | None:
    """What is wrong with a variable that begins as those of a command, unless it is one of them."""
    command = program.get_command(ctx, name)
    if command is None or variable in _variables(command, ctx, (name,)):
        return None
    return f"belongs to no option of neurogen {name}. {_nearest(variable, _variables(command, ctx, (name,)))}"


def _variables(command: click.Command, ctx: click.Context, path: tuple[str, ...]) -> Iterator[str]:
    """The variables of a command and of those below it; those of plugins last, since these must be loaded for it."""
    for words, one in commands_of(command, path):
        yield from (variable_of(words, key) for option in _options(one, ctx) if (key := key_of(option)))
    if _takes_sampler(command):
        classes = [plugin.sampler_class for plugin in default_registry().load_all()]
        fields = (field for cls in classes if cls is not None for field in cls.Params.model_fields.items())
        yield from (variable_of(path, option_of(*field).lstrip("-")) for field in fields)


def _options(command: click.Command, ctx: click.Context) -> Iterator[click.Parameter]:
    """The parameters of a command, then those with what plugins add, which must be loaded for it."""
    yield from command.params
    yield from command.get_params(ctx)


def _takes_sampler(command: click.Command) -> bool:
    """Whether its options depend on a sampler: the one of its option --sampler, or of its argument."""
    return any(param.name == "sampler" for param in command.params)


def _nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest of those known, or all of them."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names) or 'none'}."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
