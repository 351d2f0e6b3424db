"""How a plugin is loaded when it is first needed, step by step. Knows one plugin at a time.

    import its module -> register it with pluggy -> ask its hook for classes -> check them -> the class of its name

Whatever goes wrong becomes a PluginError that names distribution, version and cause.
"""

from __future__ import annotations

from typing import Any

import pluggy

from neurogen.errors import PluginError
from neurogen.registry.distributions import extra_with, install_command
from neurogen.registry.plugin import DISABLE_VARIABLE, Kind, Plugin

__all__ = ["classes_of", "load_plugin"]


def load_plugin(plugin: Plugin, manager: pluggy.PluginManager) -> type[Any]:
    """The class that a plugin offers under its name.

    Raises:
        PluginError: it cannot be used.
    """
    module = _imported(plugin)
    classes = {cls.name: cls for cls in classes_of(plugin, module, manager)}
    if plugin.name not in classes:
        raise _failure(
            plugin,
            f"its hook {plugin.kind.hook} returned {', '.join(map(repr, sorted(classes))) or 'nothing'}, "
            f"not a {plugin.kind.name} named {plugin.name!r}",
        )
    return classes[plugin.name]


def classes_of(plugin: Plugin, module: Any, manager: pluggy.PluginManager) -> list[type[Any]]:
    """All classes that a module offers by the hook of the plugin's kind, with their declarations checked.

    Raises:
        PluginError: the module does not keep the hook spec, or a class its declaration.
    """
    _register(plugin, module, manager)
    classes = _classes_from_hook(plugin, module, manager)
    for cls in classes:
        try:
            problem = plugin.kind.problem(cls)
        except Exception as error:
            raise _failure(plugin, f"its declaration raised {type(error).__name__}: {error}") from error
        if problem:
            raise _failure(plugin, problem)
    return classes


def _imported(plugin: Plugin) -> Any:
    try:
        return plugin.load_module()
    except ModuleNotFoundError as error:
        if error.name and (plugin.value == error.name or plugin.value.startswith(f"{error.name}.")):
            raise _failure(plugin, f"its entry point names {plugin.value!r}, which does not exist") from error
        raise _failure(plugin, _missing_module(plugin, error.name or "")) from error
    except (Exception, SystemExit) as error:
        raise _failure(plugin, f"importing {plugin.value!r} raised {type(error).__name__}: {error}") from error


def _missing_module(plugin: Plugin, module: str) -> str:
    extra = extra_with(module, plugin.distribution)
    how = f"`{install_command([f'{plugin.distribution}[{extra}]'])}`" if extra else "pip install it"
    return f"it needs the module {module!r}, which is not installed ({how})"


def _register(plugin: Plugin, module: Any, manager: pluggy.PluginManager) -> None:
    """Register a module with pluggy, unless it is, and make sure that it has the hook of the plugin's kind."""
    if not manager.is_registered(module):
        try:
            manager.register(module)
        except Exception as error:  # pluggy's validation, or a module whose attributes raise
            if manager.is_registered(module):  # pluggy keeps what it has refused
                manager.unregister(module)
            raise _failure(plugin, f"it does not fit the hook spec: {' '.join(str(error).split())}") from error
    callers = manager.get_hookcallers(module) or []
    unknown = [caller.name for caller in callers if not caller.has_spec()]
    if unknown or not callers:
        manager.unregister(module)
        implements = f"implements {', '.join(unknown)}, which neurogen does not know" if unknown else "marks none"
        raise _failure(plugin, _lacks_hook(plugin.kind, implements))
    if plugin.kind.hook not in [caller.name for caller in callers]:
        raise _failure(plugin, _lacks_hook(plugin.kind, "marks another"))


def _classes_from_hook(plugin: Plugin, module: Any, manager: pluggy.PluginManager) -> list[type[Any]]:
    """What the hook of this module alone returns."""
    hook = plugin.kind.hook
    others = [other for other in manager.get_plugins() if other is not module]
    try:
        results = manager.subset_hook_caller(hook, others)()
    except (Exception, SystemExit) as error:
        raise _failure(plugin, f"its hook {hook} raised {type(error).__name__}: {error}") from error
    classes = results[0] if results else None
    if not isinstance(classes, list | tuple):
        raise _failure(plugin, f"its hook {hook} returned {classes!r}, not a list of {plugin.kind.name} classes")
    return list(classes)


def _lacks_hook(kind: Kind, instead: str) -> str:
    return f"it must implement the hook {kind.hook}, marked with neurogen.hookimpl, and {instead}"


def _failure(plugin: Plugin, cause: str) -> PluginError:
    """The error for a plugin that cannot be used."""
    return PluginError(
        f"The {plugin.kind.name} plugin {plugin.name!r} of {plugin.origin} ({plugin.value}) cannot be used: {cause}. "
        "Update or uninstall that package, or leave it out with "
        f"{DISABLE_VARIABLE}={plugin.distribution if plugin.name == '' else plugin.name}."
    )
