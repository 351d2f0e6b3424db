"""The methods that authors of samplers write, under the names they had in version 0.1.

A class may define either name; the other one is bound to the same method. Knows nothing of what the methods do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

__all__ = ["accept_old_names"]

OLD_NAMES = {"select": "_sample", "distribution": "_probs", "survivors": "_support"}
"""Name in version 0.1 -> name."""

WARNED = "_defines_old_names"
"""Attribute of a class that was warned of, so that its calls of old names are not warned of again."""


def accept_old_names(cls: type) -> None:
    """Bind every method that a sampler class defines to both of its names.

    Warns:
        DeprecationWarning: the class, or a class that it is mixed from, defines an old name.
    """
    for old, new in OLD_NAMES.items():
        owner = next(base for base in cls.__mro__ if old in vars(base) or new in vars(base))
        defined = vars(owner)
        if old not in defined:
            setattr(cls, old, _called_by_old_name(old, new, defined[new]))
        elif new not in defined or (owner is cls and defined[old] is not defined[new]):
            warnings.warn(
                f"The method `{old}` of a sampler is called `{new}` now. In {cls.__module__}.{cls.__qualname__} write "
                f"`def {new}(...)`, and `super().{new}(...)` where it calls that. The old name goes with version 0.3.",
                DeprecationWarning,
                stacklevel=3,
            )
            setattr(cls, new, defined[old])
            setattr(cls, WARNED, True)


def _called_by_old_name(old: str, new: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        if not hasattr(self, WARNED):
            warnings.warn(
                f"`{old}` of a sampler is called `{new}` now: write `.{new}(...)`. The old name goes with version 0.3.",
                DeprecationWarning,
                stacklevel=2,
            )
        return method(self, *arguments)

    return call
