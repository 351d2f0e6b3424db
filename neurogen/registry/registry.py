"""Finds plugins (samplers and processors), loads them when they are needed, and keeps a broken one from harming others.

Discovery reads entry-point metadata only. Loading imports the plugin module, registers it with pluggy, asks its hook
for classes and checks their declarations; whatever goes wrong becomes a PluginError that says which distribution, which
version and why, and concerns nobody who does not use that plugin.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
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
from neurogen.registry.distributions import install_command, samplers_to_install
from neurogen.registry.plugin import (
    DISABLE_VARIABLE,
    PROCESSORS,
    SAMPLERS,
    ChainPlugin,
    Kind,
    Plugin,
    failure,
    imported,
    lacks_hook,
    means,
    plugin_of,
    same_project,
)

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

ENTRY_POINT_GROUP = SAMPLERS.group
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
        self._disabled = _named(DISABLE_VARIABLE) if disabled is None else frozenset(disabled)
        self._only: dict[str, frozenset[str]] = {}
        self._excluded: dict[str, frozenset[str]] = {}
        self._lock = threading.RLock()
        self._plugins: list[Plugin] = []
        self._chains: dict[tuple[str, ...], ChainPlugin] = {}
        for entry in entry_points:
            self._add(plugin_of(entry))
        allowed = _named(ONLY_VARIABLE) if only is None else frozenset(only)
        if allowed or only is not None:
            self.restrict(allowed, ONLY_VARIABLE if only is None else "the list of those allowed")

    def restrict(self, only: Iterable[str], reason: str) -> None:
        """Let nothing be loaded from now on but these; what has been restricted before stays so.

        Args:
            only: names, distributions or `distribution:name`.
            reason: where this list comes from, for messages: "--only-plugins".
        """
        self._only[reason] = frozenset(only)
        for plugin in self._plugins:
            self._disable(plugin)

    def exclude(self, names: Iterable[str], reason: str) -> None:
        """Let these not be loaded from now on; what has been left out before stays so.

        Args:
            names: names, distributions or `distribution:name`.
            reason: where this list comes from, for messages.
        """
        self._excluded[reason] = frozenset(names)
        for plugin in self._plugins:
            self._disable(plugin)

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
            for cls in self._classes_of(Plugin("", distribution, version, value, kind), module):
                self._add(Plugin(cls.name, distribution, version, value, kind, load_module=lambda: module))

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
            raise PluginError(f"A {kind.name} is asked for by its name, a text, got {name!r}. {self._installed(kind)}")
        if not name.strip():
            raise PluginError(self._unknown(name, kind))
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
            raise self._of_others(cls, error) from error.__cause__
        sampler.origin = plugin.origin
        if require is not None:
            require.verify(sampler)
        return sampler

    def _of_others(self, cls: type[Sampler], error: ParameterError) -> ParameterError:
        """The error of a parameter that a sampler lacks, with those that have it."""
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
        whole = "+".join(names)
        as_one = any(whole in (one.name, one.qualified_name) for one in self._usable(kind))
        if len(names) == 1 or (kind is SAMPLERS and as_one):
            return self._find_one(whole, kind)
        if kind is not SAMPLERS:
            raise PluginError(f"{whole!r} names several {kind.name}s; one is asked for here.")
        links = [self._find_one(name, kind, chain=names) for name in names]
        key = tuple(link.qualified_name for link in links)
        if key not in self._chains:
            self._chains[key] = ChainPlugin(
                "+".join(link.name for link in links), "", "", "neurogen.contract.chain", links=links
            )
        return self._chains[key]

    def _find_one(self, name: str, kind: Kind, chain: Sequence[str] = ()) -> Plugin:
        distribution, _, own = name.rpartition(":")
        matches = [
            plugin
            for plugin in self.plugins(kind)
            if plugin.name == own and (not distribution or same_project(plugin.distribution, distribution))
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
        raise PluginError(self._unknown(name, kind, chain))

    def _add(self, plugin: Plugin) -> None:
        self._disable(plugin)
        self._plugins.append(plugin)

    def _disable(self, plugin: Plugin) -> None:
        """Leave a plugin out if a list says so."""
        if any(means(name, plugin) for name in self._disabled):
            plugin.status, plugin.error = "disabled", f"left out by {DISABLE_VARIABLE}"
        for reason, excluded in self._excluded.items():
            if plugin.status != "disabled" and any(means(name, plugin) for name in excluded):
                plugin.status, plugin.error = "disabled", f"left out by {reason}"
        for reason, allowed in self._only.items():
            if plugin.status != "disabled" and not any(means(name, plugin) for name in allowed):
                plugin.status, plugin.error = "disabled", f"not among {reason}"

    def unused_exclusions(self) -> list[str]:
        """What the lists of those disabled and of those allowed name, and no plugin is meant by: it may be misspelt."""
        named = self._disabled.union(*self._only.values(), *self._excluded.values())
        return sorted(name for name in named if not any(means(name, plugin) for plugin in self._plugins))

    def _usable(self, kind: Kind) -> list[Plugin]:
        return [plugin for plugin in self.plugins(kind) if plugin.status != "disabled"]

    def _names(self, kind: Kind) -> list[str]:
        return sorted({plugin.name for plugin in self._usable(kind)})

    def _installed(self, kind: Kind) -> str:
        names = self._names(kind)
        if names:
            return f"Installed: {', '.join(names)}."
        return f"No {kind.name} plugin is installed. Install one, for example `{kind.example}`."

    def _unknown(self, name: str, kind: Kind, chain: Sequence[str] = ()) -> str:
        """What is said of a name that no plugin has; `chain` is what it stands in, all of which has to be installed."""
        own = name.rpartition(":")[2]
        said = f"There is no {kind.name} {name!r}. {self._installed(kind)}"
        to_install = self._to_install(kind)
        if _fits(name, to_install):
            packages = [to_install[link.rpartition(":")[2]] for link in chain or [name] if _fits(link, to_install)]
            return f"{said} {own!r} comes with `{install_command(packages)}`."
        near = difflib.get_close_matches(own, [*self._names(kind), *to_install], n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if near and near[0] in to_install:
            hint += f" It comes with `{install_command([to_install[near[0]]])}`."
        return said + hint

    def _to_install(self, kind: Kind) -> Mapping[str, str]:
        """Plugins of neurogen's own that are not installed: name -> package. Its processors are always there."""
        here = {plugin.name for plugin in self.plugins(kind)}
        return {name: one for name, one in samplers_to_install().items() if kind is SAMPLERS and name not in here}

    def _load(self, plugin: Plugin) -> type[Any]:
        with self._lock:
            if plugin.plugin_class is None:
                if plugin.status == "failed":
                    raise PluginError(plugin.error)
                started = time.perf_counter()
                try:
                    plugin.plugin_class = self._load_now(plugin)
                except PluginError as error:
                    plugin.status, plugin.error = "failed", str(error)
                    raise
                finally:
                    plugin.load_seconds = time.perf_counter() - started
                plugin.status = "loaded"
            return plugin.plugin_class

    def _load_now(self, plugin: Plugin) -> type[Any]:
        if isinstance(plugin, ChainPlugin):
            return chain_class([self._load(link) for link in plugin.links])
        module = imported(plugin)
        classes = {cls.name: cls for cls in self._classes_of(plugin, module)}
        if plugin.name not in classes:
            raise failure(
                plugin,
                f"its hook {plugin.kind.hook} returned {', '.join(map(repr, sorted(classes))) or 'nothing'}, "
                f"not a {plugin.kind.name} named {plugin.name!r}",
            )
        return classes[plugin.name]

    def _classes_of(self, plugin: Plugin, module: Any) -> list[type[Any]]:
        hook = plugin.kind.hook
        self._register(plugin, module)
        others = [other for other in self._manager.get_plugins() if other is not module]
        try:
            results = self._manager.subset_hook_caller(hook, others)()
        except (Exception, SystemExit) as error:
            raise failure(plugin, f"its hook {hook} raised {type(error).__name__}: {error}") from error
        classes = results[0] if results else None
        if not isinstance(classes, list | tuple):
            raise failure(plugin, f"its hook {hook} returned {classes!r}, not a list of {plugin.kind.name} classes")
        for cls in classes:
            try:
                problem = plugin.kind.problem(cls)
            except Exception as error:
                raise failure(plugin, f"its declaration raised {type(error).__name__}: {error}") from error
            if problem:
                raise failure(plugin, problem)
        return list(classes)

    def _register(self, plugin: Plugin, module: Any) -> None:
        if not self._manager.is_registered(module):
            self._register_now(plugin, module)
        callers = self._manager.get_hookcallers(module) or []
        if plugin.kind.hook not in [caller.name for caller in callers]:
            raise failure(plugin, lacks_hook(plugin.kind, "marks another"))

    def _register_now(self, plugin: Plugin, module: Any) -> None:
        try:
            self._manager.register(module)
        except Exception as error:  # pluggy's validation, or a module whose attributes raise
            if self._manager.is_registered(module):  # pluggy keeps what it has refused
                self._manager.unregister(module)
            raise failure(plugin, f"it does not fit the hook spec: {' '.join(str(error).split())}") from error
        callers = self._manager.get_hookcallers(module) or []
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        if unknown or not callers:
            self._manager.unregister(module)
            implemented = f"implements {', '.join(unknown)}, which neurogen does not know" if unknown else "marks none"
            raise failure(plugin, lacks_hook(plugin.kind, implemented))


def _fits(name: str, to_install: Mapping[str, str]) -> bool:
    """Whether one of these packages brings what `name` asks for, `sampler` or `distribution:sampler`."""
    distribution, _, own = name.rpartition(":")
    return own in to_install and (not distribution or same_project(distribution, to_install[own]))


def _named(variable: str) -> frozenset[str]:
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
