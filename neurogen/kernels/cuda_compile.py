"""Compiles CUDA kernels without a card, and says what they ask of one: `python -m neurogen.kernels.cuda_compile`.

Needs NVVM (the extra `cuda`) and, for registers, shared memory and spills, the program `ptxas` or the package
cuda-core.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from numba import cuda

from neurogen.kernels.cuda_launch import BLOCK, STORED, Kernel

__all__ = [
    "ARCHITECTURES",
    "MODULES",
    "Usage",
    "compile_to_ptx",
    "kernels_of",
    "llvm_of",
    "ptx_of",
    "split_kernels_of",
    "table",
    "usage_of",
]

PLAIN = "neurogen.kernels.temperature.cuda"


def installed_modules() -> tuple[str, ...]:
    """The CUDA modules of the installed plugins of this project, found by their entry points; and that of the core."""
    found = {entry.module for entry in entry_points(group="neurogen.samplers")}
    own = {module for module in found if module.startswith("neurogen_") and find_spec(f"{module}.cuda")}
    return (*(f"{module}.cuda" for module in sorted(own)), PLAIN)


MODULES = installed_modules()
ARCHITECTURES = ((8, 0), (9, 0), (10, 0))
TAILS = {"sample": (torch.int64, torch.int64, torch.int64), "probs": (torch.float32,), "support": (torch.bool,)}
WHOLE_PARAMETERS = {"k"}  # int64; all others are float64
REGISTER_FILE = 65_536
SHARED_MEMORY = 48 * 1024


class Usage(NamedTuple):
    """What a kernel asks of a multiprocessor."""

    registers: int
    shared: int
    spilled: int
    block: int = BLOCK

    @property
    def fits(self) -> bool:
        """Whether a block of so many threads can be launched, and nothing is spilled."""
        taken = -(-self.registers // 8) * 8 * self.block
        return not self.spilled and taken <= REGISTER_FILE and self.shared <= SHARED_MEMORY


def kernels_of(module: str) -> Iterator[tuple[str, Kernel, tuple[torch.dtype, ...]]]:
    """(name, kernel, dtypes of the arrays) of every kernel of a backend module."""
    backend = importlib.import_module(module)
    calls = getattr(backend, "kernels", backend)  # of a sampler with memory, below what moves that
    for name, tail in TAILS.items():
        call = getattr(calls, name)
        rows = tuple(torch.int64 if parameter in WHOLE_PARAMETERS else torch.float64 for parameter in call.names)
        yield name, call.kernel, rows + tail if module != "neurogen_greedy.cuda" or name == "sample" else tail


def split_kernels_of(module: str) -> Iterator[tuple[str, Kernel, tuple[torch.dtype, ...]]]:
    """The same of both launches in which `sample` splits rows over blocks; nothing where it has no such form."""
    name, kernel, arrays = next(kernels_of(module))
    if kernel.split:
        yield f"{name}, first", kernel.split.survey, (torch.int64,)
        yield f"{name}, second", kernel.split.finish, (*arrays, torch.int64)


def ptx_of(kernel: Kernel, logits: torch.dtype, arrays: Iterable[torch.dtype], cc: tuple[int, int]) -> str:
    """The PTX of the form of a kernel for these dtypes, for a compute capability."""
    return compile_to_ptx(kernel, kernel.signature(logits, *arrays), cc)


def compile_to_ptx(kernel: Kernel, signature: Any, cc: tuple[int, int]) -> str:
    """The PTX of a kernel for a Numba signature and a compute capability, with the bounds that it is launched with."""
    with _pretended_card(cc):
        ptx, _ = cuda.compile(
            kernel.function,
            signature,
            cc=cc,
            device=False,
            abi="numba",
            output="ptx",
            launch_bounds=kernel.launch_bounds,
        )
    return str(ptx)


def llvm_of(kernel: Kernel, logits: torch.dtype, arrays: Iterable[torch.dtype], cc: tuple[int, int]) -> str:
    """The code of the form of a kernel for these dtypes before optimisation, with that of all functions it calls."""
    from numba.cuda import compiler

    with _pretended_card(cc):
        result = compiler.compile_cuda(
            kernel.function, None, kernel.signature(logits, *arrays).args, cc=cc, fastmath=False, nvvm_options={}
        )
    return str(result.library.get_llvm_str())


@contextmanager
def _pretended_card(cc: tuple[int, int]) -> Iterator[None]:
    """Numba asks the current card for its compute capability even where it is told one."""
    from numba.cuda import dispatcher

    original = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = original


def usage_of(ptx: str, cc: tuple[int, int], block: int = BLOCK) -> Usage | None:
    """What the assembler reports of a kernel for blocks of so many threads; None where there is none to ask."""
    report = _report_of_program(ptx, cc) if shutil.which("ptxas") else _report_of_library(ptx, cc)
    if report is None:
        return None
    shared = re.search(r"(\d+) bytes smem", report)
    return Usage(
        int(re.findall(r"Used (\d+) registers", report)[0]),
        int(shared[1]) if shared else 0,
        sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", report)),
        block,
    )


def _report_of_program(ptx: str, cc: tuple[int, int]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        arch = f"-arch=sm_{cc[0]}{cc[1]}"
        command = ["ptxas", "-v", arch, str(file), "-o", str(file.with_suffix(".cubin"))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _report_of_library(ptx: str, cc: tuple[int, int]) -> str | None:
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode
    except ImportError:
        return None
    options = LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}", ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    linker.link("cubin")
    return str(linker.get_info_log())


def table(
    modules: Iterable[str] = MODULES,
    architectures: Iterable[tuple[int, int]] = ARCHITECTURES,
    dtypes: Iterable[torch.dtype] = tuple(STORED),
) -> Iterator[tuple[str, str, str, str, str, Usage | None]]:
    """(module, kernel, dtype, architecture, PTX, usage) of every kernel."""
    for cc in architectures:
        for module in modules:
            for name, kernel, arrays in (*kernels_of(module), *split_kernels_of(module)):
                for dtype in dtypes:
                    ptx = ptx_of(kernel, dtype, arrays, cc)
                    stored = str(dtype).removeprefix("torch.")
                    yield module, name, stored, f"sm_{cc[0]}{cc[1]}", ptx, usage_of(ptx, cc, kernel.block)


def main() -> int:
    """Print the table; the exit status tells whether every kernel fits."""
    line = "{:<36} {:<14} {:<9} {:<7} {:>9} {:>8} {:>7} {:>8}"
    print(line.format("module", "kernel", "logits", "arch", "registers", "shared", "spills", "threads"))  # noqa: T201
    fit = True
    for module, name, dtype, arch, _, usage in table():
        numbers = usage or ("?", "?", "?", "?")
        print(line.format(module, name, dtype, arch, *numbers), flush=True)  # noqa: T201
        fit = fit and (usage is None or usage.fits)
    return 0 if fit else 1


if __name__ == "__main__":
    sys.exit(main())
