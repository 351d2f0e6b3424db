"""What a measurement gives: times, ratios, and on which machine; all of it plain JSON. Measures nothing itself."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import neurogen
from neurogen.bench.cells import Cell

__all__ = ["FLOOR", "Machine", "Quartiles", "Report", "Result", "Timing", "cpu_name", "this_machine"]

FLOOR = "floor"
PACKAGES = ("numpy", "transformers", "llama-cpp-python", "flashinfer-python")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quartiles(_Record):
    """The middle of what was measured, and half of it around.

    Attributes:
        median, q1, q3: the quartiles.
    """

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """The quartiles of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], q1=values[0], q3=values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, q1=q1, q3=q3)


class Timing(_Record):
    """How long one contender took.

    Attributes:
        microseconds: a call.
        turns, calls: how often it was measured, and the calls a turn.
    """

    microseconds: Quartiles
    turns: int
    calls: int


class Result(_Record):
    """A sampler and its peers on one cell.

    Attributes:
        sampler: its name.
        params: its parameters, which its peers were given too.
        cell: what it was measured on.
        device: cpu or cuda:N.
        logits: where these logits come from.
        own: how long the sampler took.
        peers: name -> how long it took.
        to_peers: name -> the sampler's time over the peer's, turn by turn.
        peer_notes: name -> what the peer does, where it does not do what the sampler does.
    """

    sampler: str
    params: dict[str, Any]
    cell: Cell
    device: str
    logits: str
    own: Timing
    peers: dict[str, Timing]
    to_peers: dict[str, Quartiles]
    peer_notes: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The sampler with its parameters: "topk(k=50, temperature=0.8)"."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.sampler}({values})" if values else self.sampler

    @property
    def microseconds(self) -> float:
        """The sampler's median time a call."""
        return self.own.microseconds.median

    @property
    def ratio_to_floor(self) -> float:
        """Its time over that of one read of the logits, `torch.amax`."""
        return self.ratio_to(FLOOR)

    def ratio_to(self, peer: str) -> float:
        """Its time over a peer's: below 1 the sampler is faster.

        Raises:
            KeyError: that peer was not measured.
        """
        return self.to_peers[peer].median

    def times_faster_than(self, peer: str) -> float:
        """A peer's time over the sampler's: above 1 the sampler is faster.

        Raises:
            KeyError: that peer was not measured.
        """
        return 1 / self.ratio_to(peer)


class Machine(_Record):
    """Where and with what it was measured.

    Attributes:
        neurogen, torch, numba, python: versions.
        packages: versions of the peers that are installed.
        cpu: its name, and what tells it from others of that name.
        threads: threads that torch and the samplers use.
        device: name of the CUDA device, where one was used.
    """

    neurogen: str
    torch: str
    numba: str
    python: str
    packages: dict[str, str]
    cpu: str
    threads: int
    device: str | None = None


class Report(_Record):
    """A whole run.

    Attributes:
        machine: where it ran.
        results: cell by cell.
    """

    machine: Machine
    results: list[Result]


def this_machine(threads: int, device: str | None = None) -> Machine:
    """Describe this machine.

    Args:
        threads: how many torch uses.
        device: name of the CUDA device, if one is used.
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


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
