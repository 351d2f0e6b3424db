"""`neurogen samplers`: what is installed, with every parameter. Loads the plugins' declarations and no kernel."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import click
from pydantic.fields import FieldInfo

from neurogen.cli.common import debug_option, echo_table, unambiguous_names
from neurogen.parameters import BOUNDS, domain_of, option_of
from neurogen.registry import Plugin, default_registry
from neurogen.sampler import Sampler

__all__ = ["command"]

NONE_INSTALLED = (
    "No sampler plugin is installed. Install one, for example "
    "`pip install neurogen-greedy neurogen-topk neurogen-topp`."
)


@click.command("samplers")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of tables.")
@debug_option
def command(as_json: bool) -> None:
    """List every sampler with its parameters."""
    plugins = default_registry().load_all()
    names = unambiguous_names(plugins)
    entries = [_entry(plugin, name) for plugin, name in zip(plugins, names, strict=True)]
    if as_json:
        click.echo(json.dumps(entries, indent=2, ensure_ascii=False))
    elif not entries:
        click.echo(NONE_INSTALLED, err=True)
    else:
        _print_tables(entries)


def _entry(plugin: Plugin, name: str) -> dict[str, Any]:
    """Everything about one sampler, as `--json` prints it; without its declaration where it cannot be loaded."""
    entry: dict[str, Any] = {
        "name": name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.value,
        "status": plugin.status,
        "error": plugin.error,
    }
    cls = plugin.sampler_class
    if cls is None:
        return entry
    return entry | {
        "description": _first_sentence(cls),
        "deterministic": cls.deterministic,
        "stateful": cls.stateful,
        "backends": sorted(cls.backends),
        "dtypes": sorted(cls.dtypes),
        "parameters": [_parameter(name, field) for name, field in cls.Params.model_fields.items()],
    }


def _first_sentence(cls: type[Sampler]) -> str:
    """The first paragraph of the class's own docstring."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    return " ".join(text.split("\n\n")[0].split())


def _parameter(name: str, field: FieldInfo) -> dict[str, Any]:
    return {
        "name": name,
        "option": option_of(name, field),
        "type": getattr(field.annotation, "__name__", str(field.annotation)),
        "bounds": _bounds(field),
        "domain": domain_of(field),
        "default": field.default,
        "description": field.description,
    }


def _bounds(field: FieldInfo) -> dict[str, float]:
    """The bounds of a number: `gt`, `ge`, `lt`, `le`, those it has."""
    found = ((bound, getattr(item, bound, None)) for item in field.metadata for bound, _ in BOUNDS)
    return {bound: limit for bound, limit in found if limit is not None}


def _print_tables(entries: list[dict[str, Any]]) -> None:
    header = ("SAMPLER", "DISTRIBUTION", "DETERMINISTIC", "BACKENDS", "DESCRIPTION")
    echo_table(header, map(_sampler_row, entries))
    parameters = [
        _parameter_row(entry["name"], parameter) for entry in entries for parameter in entry.get("parameters", ())
    ]
    if parameters:
        click.echo()
        echo_table(("SAMPLER", "PARAMETER", "OPTION", "DOMAIN", "DEFAULT", "DESCRIPTION"), parameters)


def _sampler_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    origin = f"{entry['distribution']} {entry['version']}"
    if "parameters" not in entry:
        return entry["name"], origin, "-", "-", f"{entry['status']}: {entry['error']}"
    deterministic = "yes" if entry["deterministic"] else "no"
    return entry["name"], origin, deterministic, ", ".join(entry["backends"]) or "any", entry["description"]


def _parameter_row(sampler: str, parameter: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("name", "option", "domain", "default", "description")
    return sampler, *(str(parameter[key]) for key in keys)
