"""All plugins of an environment, samplers and processors: found by their entry points, loaded when first needed.

Discovery reads entry-point metadata only. `loading` does what is needed when a plugin is first used; a plugin that
fails to load is kept with its error and does not affect the others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pluggy

from neurogen.contract import hookspecs
from neurogen.contract.chain import chain_class, given_in
from neurogen.contract.parameters import has_parameter, nearest_parameter
from neurogen.contract.processor import Processor
from neurogen.contract.requirements import Contract
from neurogen.contract.sampler import Sampler
from neurogen.contract.spec import parse_spec
from neurogen.errors import ParameterError, PluginError
from neurogen.registry.loading import classes_of, load_plugin
from neurogen.registry.plugin import (
    DISABLE_VARIABLE,
    ENTRY_POINT_GROUP,
    PROCESSORS,
    SAMPLERS,
    ChainPlugin,
    Kind,
    Plugin,
    is_meant,
    plugin_of,
    same_distribution,
)
from neurogen.registry.suggestions import installed_names, unknown_name

__all__ = [
    "DISABLE_VARIABLE",
    "ENTRY_POINT_GROUP",
    "PROCESSORS",
    "SAMPLERS",
    "Kind",
    "Plugin",
    "Registry",
    "default_registry",
    "load_processors",
    "load_sampler",
]

ONLY_VARIABLE = "NEUROGEN_ONLY_PLUGINS"


class Registry:
    """All plugins of one environment.

    Args:
        entry_points: what to look at; by default the groups of samplers and processors of the running interpreter.
        disabled: names, distributions or `distribution:name` to leave out; by default the comma-separated list in the
            environment variable NEUROGEN_DISABLE_PLUGINS.
        only: likewise what may be loaded, and nothing else; None is everything; by default NEUROGEN_ONLY_PLUGINS.
    """

    def __init__(
        self,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        disabled: Iterable[str] | None = None,
        only: Iterable[str] | None = None,
    ) -> None:
        if entry_points is None:
            groups = (SAMPLERS.group, PROCESSORS.group)
            entry_points = (entry for group in groups for entry in importlib.metadata.entry_points(group=group))
        self._manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        self._lock = threading.RLock()
        self._chains: dict[tuple[str, ...], ChainPlugin] = {}
        self._plugins = [plugin_of(entry) for entry in entry_points]
        self._allowed: dict[str, frozenset[str]] = {}
        self._excluded: dict[str, frozenset[str]] = {}
        self.exclude(_names_in(DISABLE_VARIABLE) if disabled is None else disabled, DISABLE_VARIABLE)
        if only is not None:
            self.restrict(only, "the list of those allowed")
        elif allowed := _names_in(ONLY_VARIABLE):
            self.restrict(allowed, ONLY_VARIABLE)

    def restrict(self, only: Iterable[str], reason: str) -> None:
        """Let nothing be loaded from now on but these; earlier restrictions stay in force.

        Args:
            only: names, distributions or `distribution:name`.
            reason: where this list comes from, for messages: "--only-plugins".
        """
        self._allowed[reason] = frozenset(only)
        self._disable(self._plugins)

    def exclude(self, names: Iterable[str], reason: str) -> None:
        """Let these not be loaded from now on; earlier exclusions stay in force.

        Args:
            names: names, distributions or `distribution:name`.
            reason: where this list comes from, for messages.
        """
        self._excluded[reason] = frozenset(names)
        self._disable(self._plugins)

    def unused_exclusions(self) -> list[str]:
        """The names that were allowed or excluded and that no plugin has, probably because they are misspelt."""
        named = frozenset().union(*self._excluded.values(), *self._allowed.values())
        return sorted(name for name in named if not any(is_meant(plugin, name) for plugin in self._plugins))

    def plugins(self, kind: Kind = SAMPLERS) -> list[Plugin]:
        """Every plugin of a kind, sorted by name and distribution; nothing is loaded."""
        found = [plugin for plugin in self._plugins if plugin.kind is kind]
        return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))

    def register(self, module: Any, *, distribution: str = "registered in this process", version: str = "-") -> None:
        """Offer the samplers and processors of a module, or of any object with their hooks, without installing it.

        Raises:
            PluginError: the object does not keep the hook spec or its classes their declarations.
        """
        if module is None:
            raise PluginError(
                "There is nothing to register: None was given. Give a module, or an object with a method "
                "neurogen_samplers that is marked with neurogen.hookimpl."
            )
        value = getattr(module, "__name__", repr(module))
        kinds = [kind for kind in (SAMPLERS, PROCESSORS) if hasattr(module, kind.hook)] or [SAMPLERS]
        for kind in kinds:
            for cls in classes_of(Plugin("", distribution, version, value, kind), module, self._manager):
                plugin = Plugin(cls.name, distribution, version, value, kind, load_module=lambda: module)
                self._disable([plugin])
                self._plugins.append(plugin)

    def load_all(self, kind: Kind = SAMPLERS) -> list[Plugin]:
        """Load every plugin of a kind that is not disabled; failures are recorded, not raised."""
        for plugin in self._plugins:
            if plugin.kind is kind and plugin.status == "found":
                with contextlib.suppress(PluginError):  # kept in plugin.error
                    self._load(plugin)
        return self.plugins(kind)

    def find(self, name: str, kind: Kind = SAMPLERS) -> Plugin:
        """The plugin that `name` means, without loading it.

        Args:
            name: `sampler`, or `distribution:sampler` where several distributions offer the same name; parameters in
                parentheses are passed over. Several joined by + are a chain: one plugin of that whole name where there
                is one, else a `ChainPlugin`.
            kind: sampler or processor.

        Raises:
            PluginError: no such plugin (the message lists all and suggests the nearest), several, or disabled.
            ParameterError: the name cannot be read.
        """
        if not isinstance(name, str):
            installed = installed_names(self.plugins(kind), kind)
            raise PluginError(f"A {kind.name} is asked for by its name, a text, got {name!r}. {installed}")
        if not name.strip():
            raise PluginError(unknown_name(name, self.plugins(kind), kind))
        return self._find([link.name for link in parse_spec(name)], kind)

    def load_class(self, name: str, kind: Kind = SAMPLERS) -> type[Any]:
        """The class that `name` means, loaded now if it was not.

        Raises:
            PluginError: it cannot be found or loaded.
            ParameterError: the name cannot be read, or is that of a chain that is not possible.
        """
        return self._load(self.find(name, kind))

    def load_sampler(self, /, name: str, *, require: Contract | None = None, **params: Any) -> Sampler:
        """Load a sampler and give it its parameters.

        Args:
            name: as for `find`, with or without parameters: "topk", "topk(k=50)", "topk(k=50)+topp(p=0.9)".
            require: what the sampler must keep; its declaration is checked, then the sampler is tried.
            **params: values for its parameters.

        Raises:
            PluginError: it cannot be found or loaded.
            ParameterError: unknown parameter or value outside its domain, or given twice.
            ContractError: it does not keep what was required.
        """
        plugin = self.find(name)
        cls: type[Sampler] = self._load(plugin)
        given = given_in(cls, [link.params for link in parse_spec(name)])
        twice = sorted(given.keys() & params.keys())
        if twice:
            raise ParameterError(
                f"{cls.name}: {twice[0]} is given in the name, {given[twice[0]]!r}, and beside it, "
                f"{params[twice[0]]!r}. Give it once.",
                twice[0],
            )
        try:
            sampler = cls(**given, **params)
        except ParameterError as error:
            raise self._with_owners(cls, error) from error.__cause__
        sampler.origin = plugin.origin
        if require is not None:
            require.verify(sampler)
        return sampler

    def _with_owners(self, cls: type[Sampler], error: ParameterError) -> ParameterError:
        """The error about a parameter that a sampler lacks, with the samplers that have it."""
        name = error.parameter
        if name is None or name in cls.Params.model_fields or nearest_parameter(cls.Params, name):
            return error
        classes = ((plugin.name, plugin.sampler_class) for plugin in self.load_all())
        owners = [own for own, other in classes if other is not None and has_parameter(other.Params, name)]
        return ParameterError(f"{error} {name!r} is a parameter of: {', '.join(owners)}.", name) if owners else error

    def load_processors(self, spec: str) -> list[Processor]:
        """Load processors and give them their parameters.

        Args:
            spec: one or several, such as "repetition-penalty(penalty=1.2)+no-repeat-ngram(size=3)".

        Raises:
            PluginError: one cannot be found or loaded.
            ParameterError: the spec cannot be read; unknown parameter or value outside its domain.
        """
        return [self.load_processor(link.name, **link.params) for link in parse_spec(spec)]

    def load_processor(self, /, name: str, **params: Any) -> Processor:
        """Load one processor and give it its parameters.

        Args:
            name: `processor`, or `distribution:processor`.
            **params: values for its parameters.

        Raises:
            PluginError: it cannot be found or loaded.
            ParameterError: unknown parameter or value outside its domain.
        """
        plugin = self._find([name], PROCESSORS)
        processor: Processor = self._load(plugin)(**params)
        processor.origin = plugin.origin
        return processor

    def _find(self, names: Sequence[str], kind: Kind) -> Plugin:
        """The plugin of one name, or that of several names joined by +."""
        whole = "+".join(names)
        usable = [plugin for plugin in self.plugins(kind) if plugin.status != "disabled"]
        as_one = any(whole in (plugin.name, plugin.qualified_name) for plugin in usable)
        if len(names) == 1 or (kind is SAMPLERS and as_one):
            return self._find_one(whole, kind)
        if kind is not SAMPLERS:
            raise PluginError(f"{whole!r} names several {kind.name}s; one is asked for here.")
        links = [self._find_one(name, kind, chain=names) for name in names]
        key = tuple(link.qualified_name for link in links)
        if key not in self._chains:
            name = "+".join(link.name for link in links)
            self._chains[key] = ChainPlugin(name, "", "", "neurogen.contract.chain", links=links)
        return self._chains[key]

    def _find_one(self, name: str, kind: Kind, chain: Sequence[str] = ()) -> Plugin:
        distribution, _, own = name.rpartition(":")
        matches = [
            plugin
            for plugin in self.plugins(kind)
            if plugin.name == own and (not distribution or same_distribution(plugin.distribution, distribution))
        ]
        usable = [plugin for plugin in matches if plugin.status != "disabled"]
        if len(usable) == 1:
            return usable[0]
        if usable:
            offers = " and ".join(f"{plugin.origin} ({plugin.value})" for plugin in usable)
            choices = " or ".join(repr(plugin.qualified_name) for plugin in usable)
            raise PluginError(
                f"The {kind.name} {own!r} is offered by {offers}. Say which one you mean: {choices}, or uninstall one."
            )
        if matches:
            raise PluginError(
                f"The {kind.name} {name!r} of {matches[0].origin} is disabled: {matches[0].error}. Change that to use "
                "it."
            )
        raise PluginError(unknown_name(name, self.plugins(kind), kind, chain))

    def _disable(self, plugins: Iterable[Plugin]) -> None:
        """Leave out the plugins that are excluded, or not among those allowed."""
        for plugin in plugins:
            excluding = [why for why, names in self._excluded.items() if any(is_meant(plugin, one) for one in names)]
            lacking = [why for why, names in self._allowed.items() if not any(is_meant(plugin, one) for one in names)]
            reasons = [f"left out by {why}" for why in excluding] + [f"not among {why}" for why in lacking]
            if reasons and plugin.status != "disabled":
                plugin.status, plugin.error = "disabled", reasons[0]

    def _load(self, plugin: Plugin) -> type[Any]:
        """The class of a plugin, loaded at the first call; a failure is kept and raised again at the next ones."""
        with self._lock:
            if plugin.plugin_class is None:
                if plugin.status == "failed":
                    raise PluginError(plugin.error)
                started = time.perf_counter()
                try:
                    if isinstance(plugin, ChainPlugin):
                        plugin.plugin_class = chain_class([self._load(link) for link in plugin.links])
                    else:
                        plugin.plugin_class = load_plugin(plugin, self._manager)
                except PluginError as error:
                    plugin.status, plugin.error = "failed", str(error)
                    raise
                finally:
                    plugin.load_seconds = time.perf_counter() - started
                plugin.status = "loaded"
            return plugin.plugin_class


def _names_in(variable: str) -> frozenset[str]:
    """The names in an environment variable, separated by commas."""
    return frozenset(name.strip() for name in os.environ.get(variable, "").split(",") if name.strip())


_default: Registry | None = None
_default_lock = threading.Lock()


def default_registry() -> Registry:
    """The registry of the running interpreter, made at the first call."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Registry()
        return _default


def load_sampler(name: str, *, require: Contract | None = None, **params: Any) -> Sampler:
    """Load an installed sampler by name; see `Registry.load_sampler`.

    Example:
        sampler = neurogen.load_sampler("topk", k=50, temperature=0.8)
        ids = sampler.sample(logits, seed=1, position=12)
    """
    return default_registry().load_sampler(name, require=require, **params)


def load_processors(spec: str) -> list[Processor]:
    """Load installed logits processors; see `Registry.load_processors`."""
    return default_registry().load_processors(spec)
