"""One plugin as data: where it comes from, what it is, and how far it has been loaded.

`loading` loads it; `registry` holds all plugins of an environment.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from neurogen.contract.declarations import processor_problem, sampler_problem
from neurogen.contract.sampler import Sampler

__all__ = [
    "DISABLE_VARIABLE",
    "ENTRY_POINT_GROUP",
    "PROCESSORS",
    "SAMPLERS",
    "ChainPlugin",
    "Kind",
    "Plugin",
    "is_meant",
    "plugin_of",
    "same_distribution",
]

DISABLE_VARIABLE = "NEUROGEN_DISABLE_PLUGINS"

Status = Literal["found", "loaded", "failed", "disabled"]


@dataclass(frozen=True)
class Kind:
    """A kind of plugin.

    Attributes:
        name: "sampler" or "processor".
        group: its entry points.
        hook: what returns its classes.
        problem: what is wrong with the declaration of a class, or None.
        example: a command that installs some.
    """

    name: str
    group: str
    hook: str
    problem: Callable[[Any], str | None] = field(repr=False)
    example: str


SAMPLERS = Kind(
    "sampler",
    "neurogen.samplers",
    "neurogen_samplers",
    sampler_problem,
    "pip install neurogen-greedy neurogen-topk neurogen-topp",
)
PROCESSORS = Kind(
    "processor",
    "neurogen.processors",
    "neurogen_processors",
    processor_problem,
    "pip install --force-reinstall neurogen",
)
ENTRY_POINT_GROUP = SAMPLERS.group


@dataclass
class Plugin:
    """One sampler or processor as a distribution offers it.

    Attributes:
        name: its name (of the entry point).
        distribution, version: the package it comes from.
        value: the module it names.
        kind: what it is.
        status: found (not needed yet), loaded, failed or disabled.
        error: why it failed, or what disabled it.
        load_seconds: wall time of loading it.
        plugin_class: the class, once loaded.
    """

    name: str
    distribution: str
    version: str
    value: str
    kind: Kind = SAMPLERS
    status: Status = "found"
    error: str | None = None
    load_seconds: float | None = None
    plugin_class: type[Any] | None = field(default=None, repr=False)
    load_module: Callable[[], Any] = field(default=lambda: None, repr=False)

    @property
    def sampler_class(self) -> type[Sampler] | None:
        """The class of a sampler, once loaded."""
        return self.plugin_class

    @property
    def origin(self) -> str:
        """Provenance, as error messages show it."""
        return f"{self.distribution} {self.version}"

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which is unambiguous."""
        return f"{self.distribution}:{self.name}"


@dataclass
class ChainPlugin(Plugin):
    """Several samplers as one, which no distribution offers by itself.

    Attributes:
        links: its samplers, in order.
    """

    links: Sequence[Plugin] = ()

    @property
    def origin(self) -> str:
        """Provenance of every link."""
        return " + ".join(dict.fromkeys(link.origin for link in self.links))


def plugin_of(entry: importlib.metadata.EntryPoint) -> Plugin:
    """What an entry point offers; of another group than those here, it is taken for a sampler's."""
    distribution = entry.dist.name if entry.dist else "unknown distribution"
    version = entry.dist.version if entry.dist else "-"
    kind = PROCESSORS if entry.group == PROCESSORS.group else SAMPLERS
    return Plugin(entry.name, distribution, version, entry.value, kind, load_module=entry.load)


def is_meant(plugin: Plugin, name: str) -> bool:
    """Whether `name` is the plugin's name, its distribution, or `distribution:name`."""
    distribution, colon, own = name.rpartition(":")
    if colon:
        return own == plugin.name and same_distribution(distribution, plugin.distribution)
    return name == plugin.name or same_distribution(name, plugin.distribution)


def same_distribution(one: str, other: str) -> bool:
    """Whether two spellings, such as neurogen_topk and neurogen-topk, name one distribution."""

    def normal(name: str) -> str:
        return name.lower().replace("_", "-").replace(".", "-")

    return normal(one) == normal(other)
