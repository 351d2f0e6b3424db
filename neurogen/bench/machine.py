"""The machine and the versions of a measurement, and whether other programs used the processor meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import neurogen

__all__ = ["Machine", "busy_cores", "cpu_name", "this_machine"]

PACKAGES = ("numpy", "transformers", "llama-cpp-python", "flashinfer-python")
TOLERATED = 0.25
"""Of a core: what a desktop does on its own."""


class Machine(BaseModel):
    """Where and with what it was measured.

    Attributes:
        neurogen, torch, numba, python: versions.
        packages: versions of the peers that are installed.
        cpu: its name, and what tells it from others of that name.
        threads: threads that torch and the samplers use.
        device: name of the CUDA device, where one was used.
        busy: cores that other programs used before the measurement; None where the system does not tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    neurogen: str
    torch: str
    numba: str
    python: str
    packages: dict[str, str]
    cpu: str
    threads: int
    device: str | None = None
    busy: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether other programs wanted the cores that the threads run on."""
        return self.busy is not None and self.busy > (os.cpu_count() or 1) - self.threads + TOLERATED


def this_machine(threads: int, device: str | None = None, busy: float | None = None) -> Machine:
    """Describe this machine.

    Args:
        threads: how many torch uses.
        device: name of the CUDA device, if one is used.
        busy: what `busy_cores` said.
    """
    return Machine(
        neurogen=neurogen.__version__,
        torch=_version("torch") or "-",
        numba=_version("numba") or "-",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        cpu=cpu_name(),
        threads=threads,
        device=device,
        busy=busy,
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; on Linux with family and model, since virtual machines say little more than the maker."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    said = dict(_pairs(lines))
    name = said.get("model name") or platform.processor() or platform.machine() or "unknown"
    if "cpu family" in said and "model" in said:
        return f"{name} (family {said['cpu family']}, model {said['model']})"
    return name


def busy_cores(seconds: float = 0.2, stat: Path = Path("/proc/stat")) -> float | None:
    """How many cores other programs use just now, while this process sleeps; None where Linux's file is not there."""
    before = _cpu_times(stat)
    time.sleep(seconds if before else 0)
    after = _cpu_times(stat)
    if before is None or after is None or after[1] <= before[1]:
        return None
    share = (after[0] - before[0]) / (after[1] - before[1])
    return round(share * (os.cpu_count() or 1), 2)


def _cpu_times(stat: Path) -> tuple[int, int] | None:
    """Busy time and all time of the processors, in ticks; see proc(5): user, nice, system, idle, iowait, ..."""
    try:
        times = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        return sum(times) - times[3] - times[4], sum(times)
    except (OSError, ValueError, IndexError):
        return None


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
