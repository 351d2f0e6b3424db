"""Whether what compiles kernels for CUDA is installed: the extra `cuda` of neurogen, which torch does not bring.

Imports neither torch nor Numba, nor anything of the extra itself.
"""

from __future__ import annotations

import importlib.util

from neurogen.distributions import install_command
from neurogen.errors import DeviceError

__all__ = ["INSTALL", "MissingExtraError", "lacking", "require_cuda_extra"]

MODULES = {"numba_cuda": "numba-cuda", "cuda.bindings": "cuda-bindings"}
"""Module -> distribution. Numba alone also has a `numba.cuda`, an older one without what the kernels need."""

INSTALL = install_command(["neurogen[cuda]"])


class MissingExtraError(DeviceError):
    """CUDA kernels were asked for, and the extra that compiles them is not installed."""


def lacking() -> str | None:
    """What is not installed and how to install it, as a sentence without its full stop; None where all is there."""
    missing = [distribution for module, distribution in MODULES.items() if not _is_there(module)]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"the kernels for CUDA need {' and '.join(missing)}, which {verb} not installed: `{INSTALL}`"


def require_cuda_extra() -> None:
    """Make sure that kernels for CUDA can be compiled.

    Raises:
        MissingExtraError: the extra is not installed; the message says how to install it.
    """
    reason = lacking()
    if reason is not None:
        raise MissingExtraError(f"{reason[0].upper()}{reason[1:]}. Or use the CPU.")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is not there, or it is blocked
        return False
