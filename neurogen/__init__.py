"""neurogen: a plugin-based decoding framework. Importing it loads neither torch nor numba."""

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
from neurogen.registry import Registry, load_sampler
from neurogen.sampler import API_VERSION, Sampler, State, TruncationSampler

__version__ = "0.1.0"

__all__ = [
    "API_VERSION",
    "Contract",
    "ContractError",
    "DataError",
    "DeviceError",
    "InvalidLogitsError",
    "ModelError",
    "NeurogenError",
    "Param",
    "ParameterError",
    "PluginError",
    "Registry",
    "RowParams",
    "Sampler",
    "SamplerParams",
    "State",
    "TruncationSampler",
    "hookimpl",
    "load_sampler",
]
