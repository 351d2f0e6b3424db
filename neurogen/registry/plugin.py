"""One plugin: where it comes from, what it is, and what is said when it cannot be used. `registry` holds them all."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from neurogen.contract.declarations import processor_problem, sampler_problem
from neurogen.contract.sampler import Sampler
from neurogen.errors import PluginError
from neurogen.registry.distributions import extra_with, install_command

__all__ = ["PROCESSORS", "SAMPLERS", "ChainPlugin", "Kind", "Plugin"]

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


def same_project(one: str, other: str) -> bool:
    """Whether two names mean one distribution."""

    def normal(name: str) -> str:
        return name.lower().replace("_", "-").replace(".", "-")

    return normal(one) == normal(other)


def means(name: str, plugin: Plugin) -> bool:
    """Whether `name` is the plugin's name, its distribution, or `distribution:name`."""
    distribution, colon, sampler = name.rpartition(":")
    if colon:
        return sampler == plugin.name and same_project(distribution, plugin.distribution)
    return name == plugin.name or same_project(name, plugin.distribution)


def imported(plugin: Plugin) -> Any:
    """The module of a plugin, or a PluginError with the cause."""
    try:
        return plugin.load_module()
    except ModuleNotFoundError as error:
        if error.name and (plugin.value == error.name or plugin.value.startswith(f"{error.name}.")):
            raise failure(plugin, f"its entry point names {plugin.value!r}, which does not exist") from error
        raise failure(plugin, _missing(plugin, error)) from error
    except (Exception, SystemExit) as error:
        raise failure(plugin, f"importing {plugin.value!r} raised {type(error).__name__}: {error}") from error


def _missing(plugin: Plugin, error: ModuleNotFoundError) -> str:
    """The cause of failure of a plugin whose import lacks another module."""
    extra = extra_with(error.name or "", plugin.distribution)
    how = f"`{install_command([f'{plugin.distribution}[{extra}]'])}`" if extra else "pip install it"
    return f"it needs the module {error.name!r}, which is not installed ({how})"


def failure(plugin: Plugin, cause: str) -> PluginError:
    """The error for a plugin that cannot be used."""
    return PluginError(
        f"The {plugin.kind.name} plugin {plugin.name!r} of {plugin.origin} ({plugin.value}) cannot be used: {cause}. "
        "Update or uninstall that package, or leave it out with "
        f"{DISABLE_VARIABLE}={plugin.distribution if plugin.name == '' else plugin.name}."
    )


def lacks_hook(kind: Kind, instead: str) -> str:
    """The cause of failure of a module without the hook of its kind."""
    return f"it must implement the hook {kind.hook}, marked with neurogen.hookimpl, and {instead}"
