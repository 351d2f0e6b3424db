"""neurogen: a plugin-based decoding framework.

The public names are imported when they are first used: importing the package itself loads nothing, so that the command
is ready for Ctrl-C at once, and using them loads neither torch nor numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurogen.contract import Contract
    from neurogen.errors import (
        ContractError,
        DataError,
        DeviceError,
        InvalidLogitsError,
        ModelError,
        NeurogenError,
        ParameterError,
        PluginError,
    )
    from neurogen.hookspecs import hookimpl
    from neurogen.parameters import Param, RowParams, SamplerParams
    from neurogen.processor import History, Processor
    from neurogen.registry import Registry, load_processors, load_sampler
    from neurogen.sampler import API_VERSION, Sampler, State, TruncationSampler

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "Contract",
    "ContractError",
    "DataError",
    "DeviceError",
    "History",
    "InvalidLogitsError",
    "ModelError",
    "NeurogenError",
    "Param",
    "ParameterError",
    "PluginError",
    "Processor",
    "Registry",
    "RowParams",
    "Sampler",
    "SamplerParams",
    "State",
    "TruncationSampler",
    "hookimpl",
    "load_processors",
    "load_sampler",
]

_MODULES = ("errors", "hookspecs", "parameters", "sampler", "processor", "contract", "registry")
"""Where the public names are; each of these modules lists its own."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in (importlib.import_module(f"{__name__}.{module}") for module in _MODULES):
            if name in module.__all__:
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
