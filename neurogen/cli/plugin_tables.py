"""The list of samplers and that of processors: entries as JSON prints them, and tables of plugins and of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from neurogen.cli.common import echo, echo_table, unambiguous_names, write_json
from neurogen.contract.parameters import BOUNDS, domain_of
from neurogen.registry.registry import Kind, Plugin, default_registry

__all__ = ["list_plugins", "tell_none_installed"]

Entry = dict[str, Any]


def list_plugins(
    kind: Kind,
    *,
    as_json: bool,
    option: Callable[[type[Any], str, FieldInfo], str | None],
    declared: Callable[[type[Any]], Entry] = lambda cls: {},
    columns: Sequence[str] = (),
    cells: Callable[[Entry], Iterable[str]] = lambda entry: (),
) -> None:
    """Print every plugin of a kind with its parameters; those that cannot be loaded with the reason.

    Args:
        kind: samplers or processors.
        as_json: one array instead of tables.
        option: the command line's option for a parameter, if it has one.
        declared: what a class declares, beside its description and parameters.
        columns: titles of columns between the distribution and the description.
        cells: what stands in them for a plugin that can be loaded.
    """
    plugins = default_registry().load_all(kind)
    entries: list[Entry] = []
    for plugin, name in zip(plugins, unambiguous_names(plugins), strict=True):
        entry, cls = _entry(plugin, name), plugin.plugin_class
        if cls is not None:
            fields = cls.Params.model_fields.items()
            parameters = [_parameter(parameter, field, option(cls, parameter, field)) for parameter, field in fields]
            entry |= {"description": _first_paragraph(cls), **declared(cls), "parameters": parameters}
        entries.append(entry)
    if as_json:
        write_json(entries)
    elif not entries:
        tell_none_installed(kind)
    else:
        _print_tables(kind.name.upper(), entries, columns, cells)


def tell_none_installed(kind: Kind) -> None:
    """Say that there is no plugin of this kind, and how to get one."""
    echo(f"No {kind.name} plugin is installed. Install one, for example `{kind.example}`.", err=True)


def _entry(plugin: Plugin, name: str) -> Entry:
    """Where a plugin comes from and whether it can be used."""
    return {
        "name": name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.value,
        "status": plugin.status,
        "error": plugin.error,
    }


def _first_paragraph(cls: type[Any]) -> str:
    """The first paragraph of the class's own docstring."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    return " ".join(text.split("\n\n")[0].split())


def _parameter(name: str, field: FieldInfo, option: str | None) -> Entry:
    """Everything about one parameter."""
    bounds = ((bound, getattr(item, bound, None)) for item in field.metadata for bound, _ in BOUNDS)
    return {
        "name": name,
        "option": option,
        "type": getattr(field.annotation, "__name__", str(field.annotation)),
        "bounds": {bound: limit for bound, limit in bounds if limit is not None},
        "domain": domain_of(field),
        "default": field.default,
        "description": field.description,
    }


def _print_tables(
    title: str, entries: Sequence[Entry], columns: Sequence[str], cells: Callable[[Entry], Iterable[str]]
) -> None:
    rows, parameters = [], []
    for entry in entries:
        name, origin = entry["name"], f"{entry['distribution']} {entry['version']}"
        if "parameters" in entry:
            rows.append((name, origin, *cells(entry), entry["description"]))
        else:
            rows.append((name, origin, *["-"] * len(columns), f"{entry['status']}: {entry['error']}"))
        for one in entry.get("parameters", ()):
            values = (one[key] for key in ("name", "option", "domain", "default", "description"))
            parameters.append((name, *("-" if value is None else str(value) for value in values)))
    echo_table((title, "DISTRIBUTION", *columns, "DESCRIPTION"), rows)
    if parameters:
        echo()
        echo_table((title, "PARAMETER", "OPTION", "DOMAIN", "DEFAULT", "DESCRIPTION"), parameters)
