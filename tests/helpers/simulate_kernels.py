"""Runs the samplers' CUDA kernels on the CPU on the cases of one file; a process of its own (kernel_helpers).

Usage: python simulate_kernels.py CASES.npz RESULTS.npz
"""

from __future__ import annotations

import sys
from typing import Any

from neurogen.testing import simulator  # first: it tells Numba to simulate

# isort: split

import numpy as np

import neurogen_greedy.cuda as greedy
import neurogen_topk.cuda as topk
import neurogen_topp.cuda as topp
from neurogen.kernels import cuda
from neurogen.kernels.temperature import cuda as temperature
from neurogen.testing.simulator import launch, set_sizes

__all__ = ["SAMPLERS", "launch", "set_sizes"]


def keep_heavier(row: cuda.Row, share: float) -> Any:
    """Min-p, as another package would write it."""
    return cuda.heavier(row, share)


SAMPLERS: dict[str, Any] = {
    "greedy": greedy,
    "topk": topk,
    "topp": topp,
    "temperature": temperature,
    "minp": cuda.truncation(keep_heavier, "share"),
}


def main() -> None:
    np.seterr(all="ignore")  # overflow and invalid operations are part of the semantics, and silent on a card
    source, target = sys.argv[1:]
    results = {
        f"{case}/{name}.{key}": value
        for case, fields in simulator.read_cases(source).items()
        for name, sampler in SAMPLERS.items()
        for key, value in simulator.simulate(fields, sampler).items()
    }
    np.savez(target, **results)


if __name__ == "__main__":
    main()
