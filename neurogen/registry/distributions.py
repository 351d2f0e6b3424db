"""Packages that can be installed in addition: neurogen's own samplers, and the extras of any distribution.

They are read from the metadata of installed distributions, so `pyproject.toml` is their only list. Imports no
plugin, and nothing that an extra brings.
"""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["extra_with", "install_command", "requirements_of", "samplers_to_install"]

CORE = "neurogen"
SAMPLERS_EXTRA = "samplers"
PREFIX = "neurogen-"


def requirements_of(distribution: str) -> Iterator[tuple[str, Requirement]]:
    """The requirements of an installed distribution, each with every extra that brings it.

    Yields:
        the extra's name, or "" for what comes without one; and the requirement. Nothing for a distribution that is not
        installed; lines that cannot be read, or that do not concern this machine, are passed over.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        metadata = importlib.metadata.metadata(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return
    for text in metadata.get_all("Requires-Dist") or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield "", requirement
            continue
        for extra in metadata.get_all("Provides-Extra") or []:
            if marker.evaluate({"extra": extra}):
                yield extra, requirement


@cache
def samplers_to_install() -> Mapping[str, str]:
    """Neurogen's own samplers, installed or not: name -> package, such as "topk+topp" -> "neurogen-topk-topp"."""
    from packaging.utils import canonicalize_name

    packages = {
        canonicalize_name(requirement.name).removeprefix(PREFIX): canonicalize_name(requirement.name)
        for extra, requirement in requirements_of(CORE)
        if requirement.name.startswith(PREFIX) and extra in ("", SAMPLERS_EXTRA)
    }
    return {_sampler_of(rest, packages): package for rest, package in packages.items()}


def _sampler_of(rest: str, packages: Collection[str]) -> str:
    """The sampler in the package neurogen-REST: where all parts of REST are samplers, their chain."""
    parts = rest.split("-")
    return "+".join(parts) if all(part in packages for part in parts) else rest


def extra_with(module: str, distribution: str) -> str | None:
    """The smallest extra of a distribution that brings a module, or None.

    Args:
        module: as it is imported, such as "llguidance.hf"; a package is taken to be named as its first part.
        distribution: an installed one.
    """
    from packaging.utils import canonicalize_name

    wanted = canonicalize_name(module.partition(".")[0])
    brought: dict[str, list[str]] = {}
    for extra, requirement in requirements_of(distribution):
        brought.setdefault(extra, []).append(canonicalize_name(requirement.name))
    having = [extra for extra, packages in brought.items() if extra and wanted in packages]
    return min(having, key=lambda extra: len(brought[extra]), default=None)


def install_command(packages: Iterable[str]) -> str:
    """The command that installs packages: "pip install neurogen-minp 'neurogen[cuda]'"."""
    return shlex.join(["pip", "install", *packages])
