"""The check that a kernel uses only arithmetic that rounds alike on every device, by its functions and its code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from neurogen.contract.cuda_extra import lacking
from neurogen.contract.mistakes import explained
from neurogen.errors import NeurogenError
from neurogen.kernels.arithmetic import inexact_calls, inexact_code
from neurogen.kernels.host import SampleFunction, kernels_in
from neurogen.testing.conformance.kit import Kit, Skip, check

__all__: list[str] = []

EXPECTED = "operations that round alike on the CPU and on CUDA"
CARD = (9, 0)
"""The compute capability that kernels are compiled for; which one makes no difference before optimisation."""


@check("arithmetic", "kernels compute with operations that round alike on the CPU and on CUDA, and can be compiled")
def arithmetic(kit: Kit) -> None:
    modules = dict(_modules(kit))
    if not modules:
        raise Skip("it has no kernels of its own")
    for module in modules.values():
        for _, _, kernel in kernels_in(module):
            kit.count()
            for found in inexact_calls(kernel.function)[:1]:
                kit.fail(EXPECTED, str(found))
    if "cuda" in modules:
        _look_at_code(kit, modules["cuda"])


def _modules(kit: Kit) -> Iterator[tuple[str, Any]]:
    """Device -> the sampler's module for it, without those of neurogen itself."""
    for device, name in kit.subject.cls.backends.items():
        if not name.startswith("neurogen.kernels."):
            try:
                yield device, importlib.import_module(name)
            except ImportError as error:
                kit.notes.append(f"{name} cannot be imported: {error}")


def _look_at_code(kit: Kit, module: Any) -> None:
    """Compile the kernels for CUDA, which needs no card, and look at what comes of it."""
    problem = _no_compiler()
    if problem:
        kit.notes.append(f"the code for CUDA was not looked at: {problem}")
        return
    from neurogen.kernels.cuda_compile import llvm_of

    for call, kernel, arrays in _forms(kit, module):
        kit.count()
        try:
            llvm = llvm_of(kernel, torch.float32, arrays, CARD)
        except NeurogenError as error:
            kit.fail("kernels that can be compiled for CUDA", str(error))
        except Exception as error:
            where = f"{call.definition}: " if call.definition else ""
            kit.fail("kernels that can be compiled for CUDA", f"{where}{explained(error)}")
        for found in inexact_code(kernel.function, llvm)[:1]:
            kit.fail(EXPECTED, str(found))


def _no_compiler() -> str:
    """Why nothing can be compiled for CUDA here; empty where it can."""
    if reason := lacking():
        return reason
    try:
        from numba.cuda.cudadrv.nvvm import NVVM

        NVVM()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def _forms(kit: Kit, module: Any) -> Iterator[tuple[Any, Any, tuple[torch.dtype, ...]]]:
    """(function, kernel, dtypes of its arrays) of a module for CUDA; in the quick form those of `sample` alone."""
    fields = kit.subject.cls.Params.model_fields
    seen: set[int] = set()
    for _, call, kernel in kernels_in(module):
        if call is None or kernel is not call.kernel or id(kernel) in seen:
            continue
        if kit.quick and not isinstance(call, SampleFunction):
            continue
        seen.add(id(kernel))
        whole = [name in fields and fields[name].annotation is int for name in call.names]
        rows = tuple(torch.int64 if is_whole else torch.float64 for is_whole in whole)
        yield call, kernel, rows + ((torch.int64,) * 3 if isinstance(call, SampleFunction) else (call.dtype,))
