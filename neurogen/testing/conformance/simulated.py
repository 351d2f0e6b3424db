"""CUDA kernels without a card: a sampler runs its code for CUDA, and each launch goes to the simulator.

So the simulator runs what a kernel was given: logits and parameters that the sampler has changed, some rows, another
dtype, several kernels a call. Importing this module loads nothing of CUDA.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurogen.contract.sampler import Sampler
from neurogen.errors import NeurogenError
from neurogen.kernels.host import Path, kernels_in

__all__ = ["Simulation", "SimulationError", "simulation"]

SIZES = {"block": 8, "warp": 4, "parts": 4, "listed": 64, "ranked": 16, "offset": 0, "gap": 0}
"""Sizes of a launch, and of warps and lists: so small that rows of some dozen logits reach every branch."""

BLOCKS = 3
"""Of a launch whose rows are not split."""

SECONDS = 300
STORED = {torch.bfloat16: np.uint16, torch.float16: np.int16}


class SimulationError(NeurogenError):
    """A kernel cannot be simulated."""


@contextmanager
def simulation() -> Iterator[Simulation]:
    """A process of its own, in which kernels are run thread by thread."""
    command = [sys.executable, "-m", "neurogen.testing.simulator"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, env=paths, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        clock = threading.Timer(SECONDS, process.kill)
        clock.start()
        try:
            yield Simulation(process, said)
        finally:
            clock.cancel()
            process.kill()


class Simulation:
    """What stands in for a card.

    Attributes:
        launches: how many kernels have been run.
    """

    def __init__(self, process: subprocess.Popen[bytes], said: Any) -> None:
        self._process = process
        self._said = said
        self._paths: dict[int, tuple[str, Path]] = {}
        self.launches = 0

    @contextmanager
    def in_place_of_a_card(self) -> Iterator[None]:
        """Within, samplers use their modules for CUDA, on tensors of the CPU."""
        from neurogen.kernels import cuda_launch

        replaced: list[tuple[Any, str, Any]] = [
            (Sampler, "_backend", lambda sampler, logits: importlib.import_module(sampler.backends["cuda"])),
            (cuda_launch, "_start", self._start),
            (cuda_launch, "_block", lambda batch, device: cuda_launch.BLOCK),
        ]
        before = [getattr(owner, name) for owner, name, _ in replaced]
        try:
            for owner, name, value in replaced:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(replaced, before, strict=True):
                setattr(owner, name, value)

    def _start(self, kernel: Any, logits: Tensor, tensors: tuple[Tensor, ...], grid: int, block: int) -> None:
        """One launch: as `neurogen.kernels.cuda_launch` starts it on a card, with fewer threads."""
        kernel.signature(logits.dtype, *[tensor.dtype for tensor in tensors])  # which a card would be asked for
        batch = len(logits)
        blocks = range(BLOCKS) if grid <= batch else range(grid)[::-1]  # those of split rows may come in any order
        arrays = tuple(_flat(tensor).copy() for tensor in tensors)
        case = {**SIZES, "logits": _flat(logits).reshape(logits.shape)}
        found = self._answer((*self._path(kernel), case, arrays, blocks))
        for tensor, array in zip(tensors, found, strict=True):
            tensor.copy_(torch.from_numpy(array).view(tensor.dtype).view(tensor.shape))
        self.launches += 1

    def _path(self, kernel: Any) -> tuple[str, Path]:
        if id(kernel) not in self._paths:
            self._paths[id(kernel)] = _path_of(kernel)
        return self._paths[id(kernel)]

    def _answer(self, launch: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(launch, self._process.stdin)
            self._process.stdin.flush()
            arrays, problem = pickle.load(self._process.stdout)
        except (OSError, EOFError):
            self._process.wait()
            self._said.seek(0)
            raise SimulationError(self._said.read().strip()[-2000:] or f"no answer within {SECONDS} seconds") from None
        if problem:
            raise SimulationError(problem)
        return tuple(arrays)


def _flat(tensor: Tensor) -> Any:
    """The elements as a kernel reads them."""
    whole = tensor.contiguous().view(-1)
    if whole.dtype in STORED:
        return whole.view(torch.int16).numpy().view(STORED[whole.dtype])
    return (whole.view(torch.uint8) if whole.dtype == torch.bool else whole).numpy()


def _path_of(kernel: Any) -> tuple[str, Path]:
    """The module of a kernel, and the way to it.

    Raises:
        SimulationError: no module has it.
    """
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType):
            for path, _, found in kernels_in(module):
                if found is kernel:
                    return name, path
    raise SimulationError("a kernel stands in no module: what `truncation` returns must be kept in one of its names")
