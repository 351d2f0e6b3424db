"""Finds plugins by their entry points, loads them when they are needed, examines them, and writes new ones.

Knows no plugin by name, and nothing about models and decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurogen._lazy import names_of

if TYPE_CHECKING:
    from neurogen.registry.registry import (
        DISABLE_VARIABLE,
        ENTRY_POINT_GROUP,
        PROCESSORS,
        SAMPLERS,
        Kind,
        Plugin,
        Registry,
        default_registry,
        load_processors,
        load_sampler,
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

__getattr__ = names_of(__name__, "registry")
