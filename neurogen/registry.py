"""Finds sampler plugins, loads them when they are needed, and keeps a broken one from harming the rest.

Discovery reads entry-point metadata only. Loading imports the plugin module, registers it with pluggy, asks its hook
for classes and checks their declarations; whatever goes wrong becomes a PluginError that says which distribution, which
version and why, and concerns nobody who does not use that plugin.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import inspect
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pluggy

from neurogen import hookspecs
from neurogen.contract import Contract
from neurogen.errors import NeurogenError, PluginError
from neurogen.parameters import NUMBERS, SamplerParams
from neurogen.sampler import API_VERSION, DTYPES, Sampler, TruncationSampler

__all__ = ["ENTRY_POINT_GROUP", "Plugin", "Registry", "default_registry", "load_sampler"]

ENTRY_POINT_GROUP = "neurogen.samplers"
DISABLE_VARIABLE = "NEUROGEN_DISABLE_PLUGINS"
RESERVED_PARAMETERS = frozenset({"self", "name", "logits", "seed", "position", "check", "state", "require"})
PARAMETER_TYPES = (*NUMBERS, bool, str)

Status = Literal["found", "loaded", "failed", "disabled"]


@dataclass
class Plugin:
    """One sampler as a distribution offers it.

    Attributes:
        name: the sampler's name (of the entry point).
        distribution, version: the package it comes from.
        value: the module it names.
        status: found (not needed yet), loaded, failed or disabled.
        error: why it failed, or what disabled it.
        load_seconds: wall time of loading it.
    """

    name: str
    distribution: str
    version: str
    value: str
    status: Status = "found"
    error: str | None = None
    load_seconds: float | None = None
    sampler_class: type[Sampler] | None = field(default=None, repr=False)
    load_module: Callable[[], Any] = field(default=lambda: None, repr=False)

    @property
    def origin(self) -> str:
        """Provenance, as error messages show it."""
        return f"{self.distribution} {self.version}"

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which is unambiguous."""
        return f"{self.distribution}:{self.name}"


class Registry:
    """All sampler plugins of one environment.

    Args:
        entry_points: what to look at; by default the group `neurogen.samplers` of the running interpreter.
        disabled: names, distributions or `distribution:name` to leave out; by default the comma-separated list in the
            environment variable NEUROGEN_DISABLE_PLUGINS.
    """

    def __init__(
        self,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        disabled: Iterable[str] | None = None,
    ) -> None:
        if entry_points is None:
            entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        if disabled is None:
            disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        self._manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        self._disabled = frozenset(name.strip() for name in disabled if name.strip())
        self._lock = threading.RLock()
        self._plugins: list[Plugin] = []
        for entry in entry_points:
            self._add(_plugin_of(entry))

    def plugins(self) -> list[Plugin]:
        """Every plugin found, sorted by name and distribution; nothing is loaded."""
        return sorted(self._plugins, key=lambda plugin: (plugin.name, plugin.distribution))

    def register(self, module: Any, *, distribution: str = "registered in this process", version: str = "-") -> None:
        """Offer the samplers of a module, or of any object with a `neurogen_samplers` hook, without installing it.

        Raises:
            PluginError: the object does not keep the hook spec or its classes their declarations.
        """
        if module is None:
            raise PluginError(
                "There is nothing to register: None was given. Give a module, or an object with a method "
                "neurogen_samplers that is marked with neurogen.hookimpl."
            )
        probe = Plugin("", distribution, version, getattr(module, "__name__", repr(module)))
        for cls in self._classes_of(probe, module):
            plugin = Plugin(cls.name, distribution, version, probe.value, load_module=lambda: module)
            self._add(plugin)

    def load_all(self) -> list[Plugin]:
        """Load every plugin that is not disabled; failures are recorded, not raised."""
        for plugin in self._plugins:
            if plugin.status == "found":
                with contextlib.suppress(PluginError):  # kept in plugin.error
                    self._load(plugin)
        return self.plugins()

    def find(self, name: str) -> Plugin:
        """The plugin that `name` means, without loading it.

        Args:
            name: `sampler`, or `distribution:sampler` where several distributions offer the same name.

        Raises:
            PluginError: no such sampler (the message lists all and suggests the nearest), several, or disabled.
        """
        if not isinstance(name, str):
            raise PluginError(f"A sampler is asked for by its name, a text, got {name!r}. {self._installed()}")
        distribution, _, sampler = name.rpartition(":")
        matches = [
            plugin
            for plugin in self.plugins()
            if plugin.name == sampler and (not distribution or _same_project(plugin.distribution, distribution))
        ]
        usable = [plugin for plugin in matches if plugin.status != "disabled"]
        if len(usable) == 1:
            return usable[0]
        if usable:
            offers = " and ".join(f"{plugin.origin} ({plugin.value})" for plugin in usable)
            choices = " or ".join(repr(plugin.qualified_name) for plugin in usable)
            raise PluginError(
                f"The sampler {sampler!r} is offered by {offers}. Say which one you mean: {choices}, or uninstall one."
            )
        if matches:
            raise PluginError(
                f"The sampler {name!r} of {matches[0].origin} is disabled by {DISABLE_VARIABLE}. Change that variable "
                "to use it."
            )
        raise PluginError(self._unknown(name))

    def load_class(self, name: str) -> type[Sampler]:
        """The sampler class that `name` means, loaded now if it was not.

        Raises:
            PluginError: it cannot be found or loaded.
        """
        return self._load(self.find(name))

    def load_sampler(self, /, name: str, *, require: Contract | None = None, **params: Any) -> Sampler:
        """Load a sampler and give it its parameters.

        Args:
            name: as for `find`.
            require: what the sampler must keep; its declaration is checked, then the sampler is tried.
            **params: values for its parameters.

        Raises:
            PluginError: it cannot be found or loaded.
            ParameterError: unknown parameter or value outside its domain.
            ContractError: it does not keep what was required.
        """
        plugin = self.find(name)
        sampler = self._load(plugin)(**params)
        sampler.origin = plugin.origin
        if require is not None:
            require.verify(sampler)
        return sampler

    def _add(self, plugin: Plugin) -> None:
        if any(_means(name, plugin) for name in self._disabled):
            plugin.status, plugin.error = "disabled", f"left out by {DISABLE_VARIABLE}"
        self._plugins.append(plugin)

    def unused_exclusions(self) -> list[str]:
        """What NEUROGEN_DISABLE_PLUGINS (or `disabled`) names and no plugin is meant by: misspelt, or not installed."""
        return sorted(name for name in self._disabled if not any(_means(name, plugin) for plugin in self._plugins))

    def _names(self) -> list[str]:
        return sorted({plugin.name for plugin in self._plugins if plugin.status != "disabled"})

    def _installed(self) -> str:
        names = self._names()
        if names:
            return f"Installed: {', '.join(names)}."
        return (
            "No sampler plugin is installed. Install one, for example "
            "`pip install neurogen-greedy neurogen-topk neurogen-topp`."
        )

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name.rpartition(":")[2], self._names(), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"There is no sampler {name!r}. {self._installed()}{hint}"

    def _load(self, plugin: Plugin) -> type[Sampler]:
        with self._lock:
            if plugin.sampler_class is None:
                if plugin.status == "failed":
                    raise PluginError(plugin.error)
                started = time.perf_counter()
                try:
                    plugin.sampler_class = self._load_now(plugin)
                except PluginError as error:
                    plugin.status, plugin.error = "failed", str(error)
                    raise
                finally:
                    plugin.load_seconds = time.perf_counter() - started
                plugin.status = "loaded"
            return plugin.sampler_class

    def _load_now(self, plugin: Plugin) -> type[Sampler]:
        module = _imported(plugin)
        classes = {cls.name: cls for cls in self._classes_of(plugin, module)}
        if plugin.name not in classes:
            raise _failure(
                plugin,
                f"its hook neurogen_samplers returned {', '.join(map(repr, sorted(classes))) or 'nothing'}, "
                f"not a sampler named {plugin.name!r}",
            )
        return classes[plugin.name]

    def _classes_of(self, plugin: Plugin, module: Any) -> list[type[Sampler]]:
        self._register(plugin, module)
        others = [other for other in self._manager.get_plugins() if other is not module]
        try:
            results = self._manager.subset_hook_caller("neurogen_samplers", others)()
        except (Exception, SystemExit) as error:
            raise _failure(plugin, f"its hook neurogen_samplers raised {type(error).__name__}: {error}") from error
        classes = results[0] if results else None
        if not isinstance(classes, list | tuple):
            raise _failure(plugin, f"its hook neurogen_samplers returned {classes!r}, not a list of sampler classes")
        for cls in classes:
            try:
                problem = declaration_problem(cls)
            except Exception as error:
                raise _failure(plugin, f"its declaration raised {type(error).__name__}: {error}") from error
            if problem:
                raise _failure(plugin, problem)
        return list(classes)

    def _register(self, plugin: Plugin, module: Any) -> None:
        if self._manager.is_registered(module):
            return
        try:
            self._manager.register(module)
        except Exception as error:  # pluggy's validation, or a module whose attributes raise
            if self._manager.is_registered(module):  # pluggy keeps what it has refused
                self._manager.unregister(module)
            raise _failure(plugin, f"it does not fit the hook spec: {' '.join(str(error).split())}") from error
        callers = self._manager.get_hookcallers(module) or []
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        if unknown or not callers:
            self._manager.unregister(module)
            implemented = f"implements {', '.join(unknown)}, which neurogen does not know" if unknown else "marks none"
            raise _failure(
                plugin,
                "it must implement the hook neurogen_samplers, marked with neurogen.hookimpl, and " + implemented,
            )


def _plugin_of(entry: importlib.metadata.EntryPoint) -> Plugin:
    distribution = entry.dist.name if entry.dist else "unknown distribution"
    version = entry.dist.version if entry.dist else "-"
    return Plugin(entry.name, distribution, version, entry.value, load_module=entry.load)


def _same_project(one: str, other: str) -> bool:
    def normal(name: str) -> str:
        return name.lower().replace("_", "-").replace(".", "-")

    return normal(one) == normal(other)


def _means(name: str, plugin: Plugin) -> bool:
    """Whether `name` is the plugin's name, its distribution, or `distribution:name`."""
    distribution, colon, sampler = name.rpartition(":")
    if colon:
        return sampler == plugin.name and _same_project(distribution, plugin.distribution)
    return name == plugin.name or _same_project(name, plugin.distribution)


def _imported(plugin: Plugin) -> Any:
    try:
        return plugin.load_module()
    except ModuleNotFoundError as error:
        if error.name and (plugin.value == error.name or plugin.value.startswith(f"{error.name}.")):
            raise _failure(plugin, f"its entry point names {plugin.value!r}, which does not exist") from error
        raise _failure(
            plugin, f"it needs the module {error.name!r}, which is not installed (pip install it)"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failure(plugin, f"importing {plugin.value!r} raised {type(error).__name__}: {error}") from error


def _failure(plugin: Plugin, cause: str) -> PluginError:
    return PluginError(
        f"The sampler plugin {plugin.name!r} of {plugin.origin} ({plugin.value}) cannot be used: {cause}. "
        "Update or uninstall that package, or leave it out with "
        f"{DISABLE_VARIABLE}={plugin.distribution if plugin.name == '' else plugin.name}."
    )


def declaration_problem(cls: Any) -> str | None:
    """What is wrong with a sampler class's declaration, or None."""
    if not (inspect.isclass(cls) and issubclass(cls, Sampler)):
        return f"{cls!r} is not a subclass of neurogen.Sampler"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        return f"{cls.__name__}.name must be letters, digits, - and _, got {name!r}"
    version = getattr(cls, "api_version", None)
    if version != API_VERSION:
        return (
            f"{cls.__name__}.api_version is {version!r} and this neurogen speaks {API_VERSION}; "
            "install a release of the plugin, or of neurogen, that fits"
        )
    if not isinstance(cls.deterministic, bool) or not isinstance(cls.stateful, bool):
        return f"{cls.__name__}.deterministic and .stateful must be True or False"
    if not isinstance(cls.dtypes, Collection) or not cls.dtypes or not DTYPES.issuperset(cls.dtypes):
        return f"{cls.__name__}.dtypes must be some of {', '.join(sorted(DTYPES))}, got {cls.dtypes!r}"
    return _missing_method(cls) or _schema_problem(cls)


def _missing_method(cls: type[Sampler]) -> str | None:
    if issubclass(cls, TruncationSampler):
        return None if cls.keep is not TruncationSampler.keep else f"{cls.__name__} does not implement keep()"
    if cls.backends:
        return None
    for method in ("select", "distribution", "survivors"):
        if getattr(cls, method) is getattr(Sampler, method):
            return f"{cls.__name__} names no backends and does not implement {method}()"
    if cls.stateful and cls.new_state is Sampler.new_state:
        return f"{cls.__name__} is stateful and does not implement new_state()"
    return None


def _schema_problem(cls: type[Sampler]) -> str | None:
    schema = cls.Params
    if not (inspect.isclass(schema) and issubclass(schema, SamplerParams)):
        return f"{cls.__name__}.Params must be a subclass of neurogen.SamplerParams, got {schema!r}"
    for name, parameter in schema.model_fields.items():
        if name in RESERVED_PARAMETERS:
            return f"the parameter {name!r} has a name that neurogen uses itself"
        if parameter.annotation not in PARAMETER_TYPES:
            return f"the parameter {name!r} must be an int, float, bool or str, got {parameter.annotation!r}"
        if parameter.is_required():
            return f"the parameter {name!r} has no default"
        if not parameter.description:
            return f"the parameter {name!r} has no description"
    try:
        schema()
    except (ValueError, NeurogenError) as error:
        return f"the defaults of its parameters do not fit their bounds: {error}"
    if issubclass(cls, TruncationSampler) and "temperature" not in schema.model_fields:
        return f"{cls.__name__}.Params must have a temperature"
    return None


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
