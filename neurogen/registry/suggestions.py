"""The message for an unknown plugin name: what is installed, what can be installed, and which name is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from neurogen.registry.distributions import install_command, samplers_to_install
from neurogen.registry.plugin import SAMPLERS, Kind, Plugin, same_distribution

__all__ = ["installed_names", "unknown_name"]


def unknown_name(name: str, plugins: Sequence[Plugin], kind: Kind, chain: Sequence[str] = ()) -> str:
    """The message for a name that no plugin has.

    Args:
        name: `sampler` or `distribution:sampler`.
        plugins: all of the kind.
        kind: of what was asked for.
        chain: the names of the chain that it stands in, all of which have to be installed.
    """
    own = name.rpartition(":")[2]
    message = f"There is no {kind.name} {name!r}. {installed_names(plugins, kind)}"
    packages = _packages_to_install(plugins, kind)
    if _comes_with(name, packages):
        wanted = [packages[link.rpartition(":")[2]] for link in chain or [name] if _comes_with(link, packages)]
        return f"{message} {own!r} comes with `{install_command(wanted)}`."
    near = difflib.get_close_matches(own, [*_usable_names(plugins), *packages], n=1, cutoff=0.5)
    if not near:
        return message
    package = packages.get(near[0])
    hint = f" It comes with `{install_command([package])}`." if package else ""
    return f"{message} Did you mean {near[0]!r}?{hint}"


def installed_names(plugins: Iterable[Plugin], kind: Kind) -> str:
    """A sentence with the names of the plugins that can be used."""
    names = _usable_names(plugins)
    if names:
        return f"Installed: {', '.join(names)}."
    return f"No {kind.name} plugin is installed. Install one, for example `{kind.example}`."


def _usable_names(plugins: Iterable[Plugin]) -> list[str]:
    return sorted({plugin.name for plugin in plugins if plugin.status != "disabled"})


def _packages_to_install(plugins: Iterable[Plugin], kind: Kind) -> Mapping[str, str]:
    """Samplers of neurogen's own that are not installed: name -> package. Its processors are always installed."""
    installed = {plugin.name for plugin in plugins}
    packages = samplers_to_install() if kind is SAMPLERS else {}
    return {name: package for name, package in packages.items() if name not in installed}


def _comes_with(name: str, packages: Mapping[str, str]) -> bool:
    """Whether one of these packages brings what `name` asks for."""
    distribution, _, own = name.rpartition(":")
    return own in packages and (not distribution or same_distribution(distribution, packages[own]))
