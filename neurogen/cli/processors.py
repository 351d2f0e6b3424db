"""`neurogen processors`: what is installed, with every parameter. Loads the plugins' declarations alone."""

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
from neurogen.cli.processor_options import direct_option
from neurogen.registry.registry import PROCESSORS, Plugin, default_registry

__all__ = ["command"]

NONE_INSTALLED = f"No processor plugin is installed. Install one, for example `{PROCESSORS.example}`."


@click.command("processors")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of tables.")
@debug_option
def command(as_json: bool) -> None:
    """List every logits processor with its parameters."""
    plugins = default_registry().load_all(PROCESSORS)
    names = unambiguous_names(plugins)
    entries = [_entry(plugin, name) for plugin, name in zip(plugins, names, strict=True)]
    print_entries(entries, as_json=as_json, none=NONE_INSTALLED, tables=_print_tables)


def _entry(plugin: Plugin, name: str) -> dict[str, Any]:
    """Everything about one processor, as `--json` prints it; without its declaration where it cannot be loaded."""
    entry, cls = plugin_entry(plugin, name), plugin.plugin_class
    if cls is None:
        return entry
    fields = cls.Params.model_fields.items()
    parameters = [parameter_entry(parameter, field, direct_option(cls, parameter)) for parameter, field in fields]
    return entry | {"description": first_paragraph(cls), "parameters": parameters}


def _print_tables(entries: Sequence[dict[str, Any]]) -> None:
    echo_table(("PROCESSOR", "DISTRIBUTION", "DESCRIPTION"), map(_row, entries))
    print_parameters("PROCESSOR", entries)


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return entry["name"], origin_of(entry), entry.get("description") or f"{entry['status']}: {entry['error']}"
