"""`neurogen processors`: what is installed, with every parameter. Loads only the plugins' declarations."""

from __future__ import annotations

import click

from neurogen.cli.common import debug_option
from neurogen.cli.plugin_tables import list_plugins
from neurogen.cli.processor_options import direct_option
from neurogen.registry.registry import PROCESSORS

__all__ = ["command"]


@click.command("processors")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of tables.")
@debug_option
def command(as_json: bool) -> None:
    """List every logits processor with its parameters."""
    list_plugins(PROCESSORS, as_json=as_json, option=lambda cls, name, field: direct_option(cls, name))
