"""How objects show themselves in a notebook: the functions that make HTML of them are registered by name.

Classes that a notebook shows know nothing of pages, and pages are imported when the first one is shown.
"""

from __future__ import annotations

import importlib

__all__ = ["Displayed", "display_with"]

_renderers: dict[str, str] = {}
"""Class -> the function that makes HTML of its objects, each as `module:name`."""


def display_with(renderers: dict[str, str]) -> None:
    """Register what makes the HTML of objects: class -> function of one object, each as `module:name`."""
    _renderers.update(renderers)


class Displayed:
    """An object that a notebook shows as HTML, where a function is registered for its class or for one of its bases."""

    def _repr_html_(self) -> str | None:
        names = (f"{cls.__module__}:{cls.__qualname__}" for cls in type(self).__mro__)
        renderer = next((_renderers[name] for name in names if name in _renderers), None)
        if renderer is None:
            return None
        module, _, function = renderer.partition(":")
        html: str = getattr(importlib.import_module(module), function)(self)
        return html
