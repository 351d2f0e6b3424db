"""Files of defaults for the command line: which there are, what they hold, and which plugins they allow.

The strongest comes first: the file given with --config-file in place of those of the working directory, else
`neurogen.toml` and `[tool.neurogen]` in `pyproject.toml` there; then the user's own `config.toml`. They are data: TOML
is read, nothing in it is run. This module knows neither commands nor options, and loads no plugin.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurogen.errors import DataError
from neurogen.files import decoded, is_there

__all__ = [
    "PLUGINS",
    "PLUGIN_LISTS",
    "ConfigurationError",
    "ConfigurationFile",
    "Kind",
    "PluginLists",
    "files_looked_at",
    "nearest",
    "parse_configuration",
    "read_configuration",
    "shown",
]

PROJECT_FILE = "neurogen.toml"
SHARED_FILE = "pyproject.toml"
SHARED_TABLE = ("tool", "neurogen")
USER_FILE = ("neurogen", "config.toml")
PLUGINS = "plugins"
PLUGIN_LISTS = ("allow", "disable")
LONGEST = 1_000_000
"""Bytes of a file that are read at most; larger ones are refused."""

SHOWN = 60


class ConfigurationError(DataError):
    """A file of defaults, or an environment variable, says something that cannot be meant."""


@dataclass(frozen=True)
class Kind:
    """What a value in a file must be.

    Attributes:
        words: in a message: "a whole number".
        types: its Python types; bool counts as int only where it is named.
        repeated: a list of such values.
    """

    words: str
    types: tuple[type, ...]
    repeated: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if not self.repeated:
            return None if self._fits(value) else f"it must be {self.words}, got {shown(value)}"
        if isinstance(value, list) and all(map(self._fits, value)):
            return None
        return f"it must be a list, each of it {self.words}, got {shown(value)}"

    def _fits(self, value: Any) -> bool:
        return isinstance(value, self.types) and (bool in self.types or not isinstance(value, bool))


@dataclass(frozen=True)
class PluginLists:
    """What one file says of plugins.

    Attributes:
        source: the file, for messages.
        allow: nothing but these may be loaded; None where the file does not say.
        disable: these may not be loaded.
    """

    source: str
    allow: tuple[str, ...] | None = None
    disable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConfigurationFile:
    """One file that was read.

    Attributes:
        path: where it is.
        table: what it holds for neurogen, without the lists of plugins.
        plugins: those lists.
        within: the tables of the file that hold it: `("tool", "neurogen")` in pyproject.toml.
    """

    path: Path
    table: Mapping[str, Any]
    plugins: PluginLists
    within: tuple[str, ...] = ()

    def place(self, keys: Sequence[str]) -> str:
        """Where a value stands, for messages."""
        return _place(self.path, (*self.within, *keys))

    def wrong(self, keys: Sequence[str], problem: str) -> ConfigurationError:
        """The error for what stands there."""
        return _wrong(self.path, (*self.within, *keys), problem)


def files_looked_at(chosen: str | None = None, folder: Path | None = None) -> list[Path]:
    """Where configuration is looked for, the strongest first; not all of them need exist.

    Args:
        chosen: the file of --config-file.
        folder: the working directory.
    """
    folder = Path() if folder is None else folder
    project = [folder / PROJECT_FILE, folder / SHARED_FILE] if chosen is None else [Path(chosen)]
    return [*project, _user_file()]


def read_configuration(chosen: str | None = None, folder: Path | None = None) -> list[ConfigurationFile]:
    """All files there are, the strongest first.

    Raises:
        ConfigurationError: one cannot be read, is no TOML, or `plugins` in it is not what it must be; `chosen` is not
            there.
    """
    if chosen is not None and not is_there(chosen):
        raise ConfigurationError(f"The configuration file {chosen} does not exist. Correct --config-file.")
    found: list[ConfigurationFile] = []
    for path in files_looked_at(chosen, folder):
        content = _content(path)
        if content is None:
            continue
        shared = path.name == SHARED_FILE
        if shared and not _speaks_of_neurogen(content):
            continue
        found.append(parse_configuration(content, path, SHARED_TABLE if shared else ()))
    return found


def parse_configuration(content: bytes, path: Path, within: tuple[str, ...] = ()) -> ConfigurationFile:
    """What the bytes of a file say.

    Args:
        content: TOML in UTF-8.
        path: named in messages.
        within: the tables in which neurogen's own lies.

    Raises:
        ConfigurationError: they are no TOML, or `plugins` is not what it must be.
    """
    try:
        table: Any = tomllib.loads(decoded(content))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no TOML file that can be read: {_one_line(error)}. Correct it.") from None
    for depth, name in enumerate(within, start=1):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise _wrong(path, within[:depth], f"it must be a table, got {shown(table)}")
    lists = _plugin_lists(path, within, table.get(PLUGINS, {}))
    own = {key: _without_lists(value) if key == PLUGINS else value for key, value in table.items()}
    return ConfigurationFile(path, own, lists, within)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest of those known, or all of them."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names) or 'none'}."


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _user_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return Path(base or os.path.expanduser("~/.config"), *USER_FILE)  # noqa: PTH111  # never raises without a home


def _content(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none."""
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


def _speaks_of_neurogen(content: bytes) -> bool:
    """Whether pyproject.toml, which is other tools' too, can have a table of neurogen's: else it is not parsed."""
    return b"neurogen" in content and b"tool" in content


def _plugin_lists(path: Path, within: tuple[str, ...], table: Any) -> PluginLists:
    keys = (*within, PLUGINS)
    if not isinstance(table, dict):
        raise _wrong(path, keys, f"it must be a table with allow and disable, got {shown(table)}")
    names = Kind("the name of a plugin or of a distribution", (str,), repeated=True)
    for key in PLUGIN_LISTS:
        problem = names.problem(table[key]) if key in table else None
        if problem:
            raise _wrong(path, (*keys, key), problem)
    allow = table.get("allow")
    return PluginLists(str(path), None if allow is None else tuple(allow), tuple(table.get("disable", ())))


def _without_lists(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in PLUGIN_LISTS}


def _place(path: Path, keys: Sequence[str]) -> str:
    return f"{path}, key {'.'.join(_quoted(key) for key in keys)}"


def _quoted(key: str) -> str:
    plain = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if plain else shown(key)


def _wrong(path: Path, keys: Sequence[str], problem: str) -> ConfigurationError:
    end = "" if problem.endswith((".", "?")) else "."
    return ConfigurationError(f"{_place(path, keys)}: {problem}{end} Correct it, or take it out.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
