"""The hooks of neurogen, and nothing else: what a plugin module may implement.

A plugin is a Python module named by an entry point in the group `neurogen.samplers` or `neurogen.processors` (entry
name = name of the sampler or processor). It marks its implementations with `neurogen.hookimpl`. Discovery reads package
metadata only; a module is imported, and its hooks are called, when something of it is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler

__all__ = ["PROJECT_NAME", "hookimpl", "hookspec"]

PROJECT_NAME = "neurogen"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def neurogen_samplers() -> Sequence[type[Sampler]]:  # type: ignore[empty-body]
    """Return the sampler classes that this module provides.

    Called for each plugin module separately, when one of its samplers is first needed: results of several modules are
    never mixed. A class is found by its `name`, so a module named by several entry points returns several classes.
    """


@hookspec
def neurogen_processors() -> Sequence[type[Processor]]:  # type: ignore[empty-body]
    """Return the logits processor classes that this module provides; called and found as samplers are."""
