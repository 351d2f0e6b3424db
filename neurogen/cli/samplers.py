"""`neurogen samplers`: what is installed, with every parameter. Loads the plugins' declarations but no kernel."""

from __future__ import annotations

from typing import Any

import click

from neurogen.cli.common import debug_option
from neurogen.cli.plugin_tables import list_plugins
from neurogen.contract.parameters import option_of
from neurogen.contract.sampler import Sampler
from neurogen.registry.registry import SAMPLERS

__all__ = ["command"]


@click.command("samplers")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of tables.")
@debug_option
def command(as_json: bool) -> None:
    """List every sampler with its parameters."""
    list_plugins(
        SAMPLERS,
        as_json=as_json,
        declared=_declared,
        option=lambda cls, name, field: option_of(name, field),
        columns=("DETERMINISTIC", "BACKENDS"),
        cells=_cells,
    )


def _declared(cls: type[Sampler]) -> dict[str, Any]:
    return {
        "deterministic": cls.deterministic,
        "stateful": cls.stateful,
        "backends": sorted(cls.backends),
        "dtypes": sorted(cls.dtypes),
    }


def _cells(entry: dict[str, Any]) -> tuple[str, str]:
    return "yes" if entry["deterministic"] else "no", ", ".join(entry["backends"]) or "any"
