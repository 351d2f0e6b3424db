"""Whether the compilers of CUDA kernels are installed: the extra `cuda` of neurogen; torch does not bring them.

Its Python packages suffice to import kernels and to simulate them; compiling them also needs NVIDIA's compilers,
which are libraries. Imports neither torch nor Numba.
"""

from __future__ import annotations

import importlib.util

from neurogen.errors import DeviceError

__all__ = ["INSTALL", "MissingExtraError", "lacking", "require_cuda_compilers", "require_cuda_extra"]

MODULES = {"numba_cuda": "numba-cuda", "cuda.bindings": "cuda-bindings"}
"""Module -> distribution. Numba itself has an older `numba.cuda`, which lacks what the kernels need."""

LIBRARIES = {"nvrtc": "nvidia-cuda-nvrtc", "nvvm": "nvidia-nvvm"}
"""Compiler -> distribution that brings it, where no CUDA toolkit does."""

INSTALL = "pip install 'neurogen[cuda]'"


class MissingExtraError(DeviceError):
    """CUDA kernels were asked for, and the extra that compiles them is not installed."""


def lacking() -> str | None:
    """What is not installed and how to install it, as a sentence without its full stop; None where all is there."""
    return _told(_absent_packages() or _absent_compilers())


def require_cuda_extra() -> None:
    """Make sure that kernels for CUDA can be imported.

    Raises:
        MissingExtraError: the packages of the extra are not installed; the message says how to install it.
    """
    _refuse(_told(_absent_packages()))


def require_cuda_compilers() -> None:
    """Make sure that kernels for CUDA can be compiled.

    Raises:
        MissingExtraError: as in `require_cuda_extra`, or the libraries that compile are not installed.
    """
    _refuse(lacking())


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise MissingExtraError(f"{reason[0].upper()}{reason[1:]}. Or use the CPU.")


def _told(missing: list[str]) -> str | None:
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"the kernels for CUDA need {' and '.join(missing)}, which {verb} not installed: `{INSTALL}`"


def _absent_packages() -> list[str]:
    return [distribution for module, distribution in MODULES.items() if not _is_there(module)]


def _absent_compilers() -> list[str]:
    """The distributions of compilers that numba-cuda does not find, in packages or in a CUDA toolkit."""
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return []  # an older numba-cuda, which looks for them in its own way
    found, missing = {}, []
    for library, distribution in LIBRARIES.items():
        try:
            found[library] = load_nvidia_dynamic_lib(library).found_via
        except DynamicLibNotFoundError:
            missing.append(distribution)
    # Beside an NVRTC of the system numba-cuda looks for the toolkit's NVVM itself.
    return [] if found.get("nvrtc") == "system-search" else missing


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is not there, or it is blocked
        return False
