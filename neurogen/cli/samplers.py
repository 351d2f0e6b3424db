"""`neurogen samplers`: what is installed, with every parameter. Loads the plugins' declarations and no kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from neurogen.cli.common import debug_option, echo_table, unambiguous_names
from neurogen.cli.plugin_tables import (
    first_paragraph,
    origin_of,
    parameter_entry,
    plugin_entry,
    print_entries,
    print_parameters,
)
from neurogen.contract.parameters import option_of
from neurogen.registry.registry import SAMPLERS, Plugin, default_registry

__all__ = ["command"]

NONE_INSTALLED = f"No sampler plugin is installed. Install one, for example `{SAMPLERS.example}`."


@click.command("samplers")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of tables.")
@debug_option
def command(as_json: bool) -> None:
    """List every sampler with its parameters."""
    plugins = default_registry().load_all()
    names = unambiguous_names(plugins)
    entries = [_entry(plugin, name) for plugin, name in zip(plugins, names, strict=True)]
    print_entries(entries, as_json=as_json, none=NONE_INSTALLED, tables=_print_tables)


def _entry(plugin: Plugin, name: str) -> dict[str, Any]:
    """Everything about one sampler, as `--json` prints it; without its declaration where it cannot be loaded."""
    entry, cls = plugin_entry(plugin, name), plugin.sampler_class
    if cls is None:
        return entry
    return entry | {
        "description": first_paragraph(cls),
        "deterministic": cls.deterministic,
        "stateful": cls.stateful,
        "backends": sorted(cls.backends),
        "dtypes": sorted(cls.dtypes),
        "parameters": [
            parameter_entry(name, field, option_of(name, field)) for name, field in cls.Params.model_fields.items()
        ],
    }


def _print_tables(entries: Sequence[dict[str, Any]]) -> None:
    header = ("SAMPLER", "DISTRIBUTION", "DETERMINISTIC", "BACKENDS", "DESCRIPTION")
    echo_table(header, map(_sampler_row, entries))
    print_parameters("SAMPLER", entries)


def _sampler_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "parameters" not in entry:
        return entry["name"], origin_of(entry), "-", "-", f"{entry['status']}: {entry['error']}"
    deterministic = "yes" if entry["deterministic"] else "no"
    return entry["name"], origin_of(entry), deterministic, ", ".join(entry["backends"]) or "any", entry["description"]
