"""Defaults of options out of configuration files and environment variables: which option a key means, and where a value
comes from. Knows how commands are built, and none of them by name.

A section is a command: `[run]`, `[tokenizer.train]`; a key is an option without its dashes. `[run.samplers.topk]` holds
parameters of a sampler. `NEUROGEN_RUN_MAX_NEW_TOKENS` is the variable of `run --max-new-tokens`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from click.core import ParameterSource

from neurogen.cli.common import Settings
from neurogen.cli.configuration import (
    PLUGIN_LISTS,
    PLUGINS,
    ConfigurationError,
    ConfigurationFile,
    Kind,
    nearest,
    shown,
)
from neurogen.contract.chain import given_in
from neurogen.contract.spec import parse_spec
from neurogen.errors import NeurogenError
from neurogen.registry.registry import Plugin, default_registry

__all__ = [
    "Defaults",
    "Provenance",
    "check_variables",
    "key_of",
    "name_variables",
    "options_by_key",
    "sampler_defaults",
    "variable_of",
]

PREFIX = "NEUROGEN"
OTHER_VARIABLES = (
    "NEUROGEN_DISABLE_PLUGINS", "NEUROGEN_ONLY_PLUGINS", "NEUROGEN_DEBUG", "NEUROGEN_CACHE", "NEUROGEN_CONFIG_FILE",
    "NEUROGEN_CUDA_PIECES",
)  # fmt: skip
"""Variables that belong to no option of a command."""

ALIKE, ALIKE_WORD = 0.9, 0.66
"""How alike a whole variable, and the word after its prefix, are to one that is meant."""
SAMPLERS = "samplers"
NOT_CONFIGURED = frozenset({"help", "version", "debug", "config-file", "only-plugins"})
"""Options that are no defaults: they stop the command, or say where defaults are."""

TEXT = Kind("a text", (str,))
WHOLE = Kind("a whole number", (int,))
NUMBER = Kind("a number", (int, float))
YES_NO = Kind("true or false", (bool,))
ANY = Kind("a number, a text, true or false", (str, int, float, bool))
KINDS: Mapping[Any, Kind] = {int: WHOLE, float: NUMBER, str: TEXT, bool: YES_NO}
NAMED_KINDS = {"integer": WHOLE, "integer range": WHOLE, "float": NUMBER, "float range": NUMBER, "number": NUMBER}
Path = tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """Where a value comes from.

    Attributes:
        place: in words, as messages name it.
        file: the file, or None for an environment variable.
    """

    place: str
    file: str | None = None


@dataclass
class Defaults:
    """The values of all files, checked, as click takes them.

    Attributes:
        files: what was read, the strongest first.
        maps: click's default_map of the program: command -> option's name -> value.
        places: (command, option's name) -> where its value stands.
        samplers: (command, name of a sampler) -> file, key, value; the weakest first.
    """

    files: Sequence[ConfigurationFile] = ()
    maps: dict[str, Any] = field(default_factory=dict)
    places: dict[tuple[Path, str], Provenance] = field(default_factory=dict)
    samplers: dict[tuple[Path, str], list[tuple[ConfigurationFile, str, Any]]] = field(default_factory=dict)

    def read(self, program: click.Group, ctx: click.Context) -> None:
        """Fill the maps from the files.

        Raises:
            ConfigurationError: a section or a key that means nothing, or a value of a wrong type.
        """
        for file in reversed(self.files):
            self._section(file, program, ctx, (), file.table, self.maps)
        for path, name in self.samplers:
            _check_sampler(self.samplers[path, name][-1][0], path, name)

    def source(self, path: Path, param: click.Parameter, ctx: click.Context) -> Provenance | None:
        """Where a value in force comes from; None for the command line and what is built in."""
        found = ctx.get_parameter_source(str(param.name))
        if found == ParameterSource.DEFAULT_MAP:
            return self.places.get((path, str(param.name)))
        if found == ParameterSource.ENVIRONMENT and isinstance(param.envvar, str):
            return Provenance(f"the environment variable {param.envvar}")
        return None

    def _section(
        self,
        file: ConfigurationFile,
        command: click.Command,
        ctx: click.Context,
        path: Path,
        table: Mapping[str, Any],
        into: dict[str, Any],
    ) -> None:
        inner = command.list_commands(ctx) if isinstance(command, click.Group) else []
        for key, value in table.items():
            name = key.replace("_", "-")
            if isinstance(command, click.Group) and name in inner:
                below = command.get_command(ctx, name)
                assert below is not None
                where = _table(file, (*path, key), value)
                self._section(file, below, ctx, (*path, name), where, into.setdefault(name, {}))
            elif name == SAMPLERS and _takes_sampler(command):
                self._samplers(file, (*path, key), path, value)
            else:
                param = options_by_key(command, ctx, name).get(name)
                if param is None:
                    raise file.wrong((*path, key), _unknown(name, command, ctx, path, inner))
                into[str(param.name)] = _checked(file, (*path, key), param, value)
                self._note(file, path, (*path, key), param)

    def _note(self, file: ConfigurationFile, path: Path, keys: Sequence[str], param: click.Parameter) -> None:
        self.places[path, str(param.name)] = Provenance(file.place(keys), str(file.path))

    def _samplers(self, file: ConfigurationFile, keys: Path, path: Path, value: Any) -> None:
        for sampler, parameters in _table(file, keys, value).items():
            for key, given in _table(file, (*keys, sampler), parameters).items():
                self.samplers.setdefault((path, sampler), []).append((file, key, given))

    def of_sampler(
        self, path: Path, plugin: Plugin, options: Sequence[click.Option], given: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values for a sampler's own options, without the parameters that are given already.

        Raises:
            ConfigurationError: a key is no parameter of this sampler, or a value has a wrong type.
        """
        found: dict[str, Any] = {}
        for (whose, name), entries in self.samplers.items():
            if whose != path or not _is_called(name, plugin):
                continue
            for file, key, value in entries:
                keys = (*path, SAMPLERS, name, key)
                known = {_plain(word): option for option in options for word in _words(option)}
                option = known.get(_plain(key))
                if option is None:
                    known_keys = [str(getattr(one, "parameter", one.name)) for one in options]
                    problem = f"{plugin.name} has no such parameter. {nearest(key, known_keys)}"
                    raise file.wrong(keys, problem)
                checked = _checked(file, keys, option, value)
                if str(getattr(option, "parameter", "")) not in given:
                    found[str(option.name)] = checked
                    self._note(file, path, keys, option)
        return found


def sampler_defaults(
    ctx: click.Context | None, path: Path, plugin: Plugin, cls: Any, spec: str, options: Sequence[Any]
) -> dict[str, Any]:
    """The defaults of a command once its sampler is known; its options learn the names of their variables.

    Args:
        ctx: the context above the command.
        path: the command.
        plugin, cls: the sampler.
        spec: as it was given; a parameter in it is given, and takes no default.
        options: the sampler's own.
    """
    inside = given_in(cls, [link.params for link in parse_spec(spec)])
    for option in options:
        if option.parameter not in inside:
            option.envvar = variable_of(path, key_of(option) or "")
    settings = ctx.find_object(Settings) if ctx is not None else None
    section: Any = (ctx.default_map or {}) if ctx is not None else {}
    own = dict(section.get(path[-1], {}))
    return (
        own
        if settings is None or settings.defaults is None
        else own | settings.defaults.of_sampler(path, plugin, options, inside)
    )


def key_of(param: click.Parameter) -> str | None:
    """How an option is called in files: its longest spelling without dashes; None where it is no default."""
    if not isinstance(param, click.Option) or not param.opts:
        return None
    name = max(param.opts, key=len).lstrip("-")
    return None if name in NOT_CONFIGURED else name


def options_by_key(command: click.Command, ctx: click.Context, wanted: str | None = None) -> dict[str, click.Parameter]:
    """The options of a command by key; those that plugins add, which must be loaded for it, only where needed."""
    own = _by_key(command.params)
    return own if wanted in own else _by_key(command.get_params(ctx))


def variable_of(path: Sequence[str], key: str) -> str:
    """The environment variable of an option."""
    return "_".join((PREFIX, *path, key)).upper().replace("-", "_")


def name_variables(command: click.Command, path: Path) -> None:
    """Let every option of a command, and of those below it, be given by its environment variable."""
    for param in command.params:
        key = key_of(param)
        if key is not None:
            param.envvar = variable_of(path, key)
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        name_variables(below, (*path, name))


def check_variables(program: click.Group, ctx: click.Context, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that begin as those of a command and belong to no option of it, or are misspelled otherwise.

    Raises:
        ConfigurationError: there is one.
    """
    _check_beginnings(environment, program.list_commands(ctx))
    for name in program.list_commands(ctx):
        start = variable_of((name,), "")
        given = [variable for variable in environment if variable.startswith(start)]
        command = program.get_command(ctx, name) if given else None
        if command is not None:
            _check_given(given, command, ctx, (name,))


def _check_beginnings(environment: Iterable[str], commands: Sequence[str]) -> None:
    """Refuse a variable that is nearly one of no command, or whose command is nearly one; others are not neurogen's."""
    starts = {variable_of((command,), ""): command for command in commands}
    for variable in environment:
        known = variable in OTHER_VARIABLES or variable.startswith(tuple(starts))
        if known or not variable.startswith(f"{PREFIX}_"):
            continue
        near = difflib.get_close_matches(variable, OTHER_VARIABLES, n=1, cutoff=ALIKE)
        begins = variable.removeprefix(f"{PREFIX}_").partition("_")[0]
        words = {start.removeprefix(f"{PREFIX}_").partition("_")[0]: start for start in starts}
        near += [words[one] for one in difflib.get_close_matches(begins, words, n=1, cutoff=ALIKE_WORD)]
        if near:
            raise ConfigurationError(
                f"The environment variable {variable} has no effect. Did you mean {near[0]}"
                f"{'...' if near[0] in starts else ''}? Correct it, or unset it."
            )


def _check_given(given: Iterable[str], command: click.Command, ctx: click.Context, path: Path) -> None:
    known = set(_variables(command, path))
    if set(given) <= known:
        return
    with_plugins = known | {variable_of(path, key) for key in options_by_key(command, ctx)}
    if _takes_sampler(command):
        with_plugins |= {variable_of(path, key) for key in _keys_of_samplers()}
    for variable in given:
        if variable not in with_plugins:
            raise ConfigurationError(
                f"The environment variable {variable} belongs to no option of neurogen {' '.join(path)}. "
                f"{nearest(variable, with_plugins)} Correct it, or unset it."
            )


def _variables(command: click.Command, path: Path) -> Iterator[str]:
    yield from (variable_of(path, key) for key in _by_key(command.params))
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from _variables(below, (*path, name))


def _keys_of_samplers() -> Iterator[str]:
    from neurogen.cli.sampler_options import options_of

    for plugin in default_registry().load_all():
        if plugin.sampler_class is not None:
            yield from (option.lstrip("-") for option in options_of(plugin.sampler_class))


def _by_key(params: Iterable[click.Parameter]) -> dict[str, click.Parameter]:
    return {key: param for param in params if (key := key_of(param)) is not None}


def _takes_sampler(command: click.Command) -> bool:
    """Whether its options depend on a sampler: the one of its option --sampler, or of its argument."""
    return any(param.name == "sampler" for param in command.params)


def _table(file: ConfigurationFile, keys: Sequence[str], value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise file.wrong(keys, f"it is a section and must be a table, got {shown(value)}")
    return value


def _unknown(name: str, command: click.Command, ctx: click.Context, path: Path, inner: Sequence[str]) -> str:
    if not path:
        return f"there is no such section. {nearest(name, [*inner, PLUGINS])}"
    sections = [SAMPLERS] if _takes_sampler(command) else []
    what = f"neurogen {' '.join(path)} has no option --{name} for which a default can be given"
    lists = PLUGIN_LISTS if path == (PLUGINS,) else ()
    return f"{what}. {nearest(name, [*options_by_key(command, ctx), *inner, *sections, *lists])}"


def _checked(file: ConfigurationFile, keys: Sequence[str], param: click.Parameter, value: Any) -> Any:
    problem = _kind(param).problem(value)
    if problem:
        raise file.wrong(keys, problem)
    return value


def _kind(param: click.Parameter) -> Kind:
    """What the value of an option must be in a file."""
    annotation = getattr(getattr(param.type, "field", None), "annotation", None)
    if isinstance(param, click.Option) and param.is_flag:
        kind = YES_NO
    elif annotation is not None:
        kind = KINDS.get(annotation, ANY)
    elif hasattr(param, "owners"):  # of several samplers, each of which reads it in its way
        kind = ANY
    else:
        kind = NAMED_KINDS.get(param.type.name, TEXT)
    return Kind(kind.words, kind.types, repeated=param.multiple) if param.multiple else kind


def _plain(key: str) -> str:
    return key.replace("_", "-")


def _words(option: click.Option) -> list[str]:
    """A sampler's option is called by its parameter or by its spelling."""
    return [str(getattr(option, "parameter", option.name)), key_of(option) or ""]


def _is_called(name: str, plugin: Plugin) -> bool:
    return name in (plugin.name, plugin.qualified_name)


def _check_sampler(file: ConfigurationFile, path: Path, name: str) -> None:
    """Refuse parameters for a sampler that is not installed; one that is disabled is let be."""
    known = {plugin.name for plugin in default_registry().plugins()}
    try:
        links = [link.name.rpartition(":")[2] for link in parse_spec(name)]
    except NeurogenError:
        links = [name]
    for link in links:
        if link not in known:
            raise file.wrong((*path, SAMPLERS, name), f"no sampler {link!r} is installed. {nearest(link, known)}")
