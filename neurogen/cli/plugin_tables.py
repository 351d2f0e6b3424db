"""What the lists of samplers and of processors share: entries of plugins and of parameters. Knows neither."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from neurogen.cli.common import echo, echo_table, write_json
from neurogen.contract.parameters import BOUNDS, domain_of
from neurogen.registry.registry import Plugin

__all__ = ["first_paragraph", "origin_of", "parameter_entry", "plugin_entry", "print_entries", "print_parameters"]


def plugin_entry(plugin: Plugin, name: str) -> dict[str, Any]:
    """Where a plugin comes from and whether it can be used, as `--json` prints it."""
    return {
        "name": name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.value,
        "status": plugin.status,
        "error": plugin.error,
    }


def first_paragraph(cls: type[Any]) -> str:
    """The first paragraph of the class's own docstring."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    return " ".join(text.split("\n\n")[0].split())


def parameter_entry(name: str, field: FieldInfo, option: str | None) -> dict[str, Any]:
    """Everything about one parameter."""
    return {
        "name": name,
        "option": option,
        "type": getattr(field.annotation, "__name__", str(field.annotation)),
        "bounds": _bounds(field),
        "domain": domain_of(field),
        "default": field.default,
        "description": field.description,
    }


def _parameter_row(owner: str, parameter: Mapping[str, Any]) -> tuple[str, ...]:
    """A parameter as a row of a table."""
    keys = ("name", "option", "domain", "default", "description")
    return owner, *("-" if parameter[key] is None else str(parameter[key]) for key in keys)


def print_parameters(kind: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """The table of all parameters, behind that of the plugins; nothing where there is none."""
    rows = [_parameter_row(entry["name"], one) for entry in entries for one in entry.get("parameters", ())]
    if rows:
        echo()
        echo_table((kind, "PARAMETER", "OPTION", "DOMAIN", "DEFAULT", "DESCRIPTION"), rows)


def print_entries(
    entries: Sequence[dict[str, Any]], *, as_json: bool, none: str, tables: Callable[[Sequence[dict[str, Any]]], None]
) -> None:
    """All entries as JSON or by `tables`; where there are none, that is said on stderr."""
    if as_json:
        write_json(entries)
    elif not entries:
        echo(none, err=True)
    else:
        tables(entries)


def origin_of(entry: Mapping[str, Any]) -> str:
    """Distribution and version of an entry."""
    return f"{entry['distribution']} {entry['version']}"


def _bounds(field: FieldInfo) -> dict[str, float]:
    """The bounds of a number: `gt`, `ge`, `lt`, `le`, those it has."""
    found = ((bound, getattr(item, bound, None)) for item in field.metadata for bound, _ in BOUNDS)
    return {bound: limit for bound, limit in found if limit is not None}
