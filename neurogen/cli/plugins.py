"""`neurogen plugins`: every plugin found, whether it loads, and why not."""

from __future__ import annotations

import json

import click

from neurogen.cli.common import debug_option, echo_table, listed, tell
from neurogen.cli.samplers import NONE_INSTALLED
from neurogen.registry import DISABLE_VARIABLE, Plugin, default_registry

__all__ = ["command"]


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a plugin fails to load.")
@debug_option
def command(as_json: bool, strict: bool) -> int:
    """List every plugin found, loaded or failed, and why."""
    registry = default_registry()
    plugins = registry.load_all()
    unused = registry.unused_exclusions()
    if unused:
        names = listed(map(repr, unused))
        tell(f"{DISABLE_VARIABLE} names {names}, and no plugin here is called so: check the spelling.")
    if as_json:
        click.echo(json.dumps([_entry(plugin) for plugin in plugins], indent=2, ensure_ascii=False))
    elif not plugins:
        click.echo(NONE_INSTALLED, err=True)
    else:
        echo_table(("PLUGIN", "DISTRIBUTION", "MODULE", "STATUS", "LOAD TIME", "ERROR"), map(_row, plugins))
    failed = any(plugin.status == "failed" for plugin in plugins)
    return 1 if strict and failed else 0


def _entry(plugin: Plugin) -> dict[str, str | float | None]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.value,
        "status": plugin.status,
        "load_seconds": plugin.load_seconds,
        "error": plugin.error,
    }


def _row(plugin: Plugin) -> tuple[str, ...]:
    seconds = plugin.load_seconds
    took = "-" if seconds is None else f"{seconds * 1000:.0f} ms"
    return plugin.name, plugin.origin, plugin.value, plugin.status, took, plugin.error or "-"
