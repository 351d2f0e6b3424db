"""neurogen: a plugin-based decoding framework.

The public names are imported when they are first used: importing the package itself loads next to nothing, so that the
command is ready for Ctrl-C at once, and using them loads neither torch nor numba.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from neurogen._lazy import MovedModules, names_of
from neurogen.contract.display import display_with

if TYPE_CHECKING:
    from neurogen.contract.hookspecs import hookimpl
    from neurogen.contract.parameters import Param, RowParams, SamplerParams
    from neurogen.contract.processor import History, Processor
    from neurogen.contract.requirements import Contract
    from neurogen.contract.sampler import API_VERSION, Sampler, State, TruncationSampler
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
    from neurogen.registry.registry import Registry, load_processors, load_sampler

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

__getattr__ = names_of(
    __name__,
    "errors",
    "contract.hookspecs",
    "contract.parameters",
    "contract.sampler",
    "contract.processor",
    "contract.requirements",
    "registry.registry",
)

sys.meta_path.append(MovedModules())

display_with(
    {
        "neurogen.contract.sampler:Sampler": "neurogen.pages.notebook:sampler_html",
        "neurogen.diagnosis.compare:Comparison": "neurogen.pages.compare:fragment",
        "neurogen.diagnosis.diagnose:Diagnosis": "neurogen.pages.diagnosis:fragment",
        "neurogen.diagnosis.explain:Explanation": "neurogen.pages.explain:fragment",
        "neurogen.text.generation:Result": "neurogen.pages.notebook:result_html",
    }
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
