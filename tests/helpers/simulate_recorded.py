"""Holds the CUDA kernels, run thread by thread on the CPU, against some recorded cases; a process of its own.

Usage: python simulate_recorded.py CASE [CASE ...]     prints the differences as a JSON array of strings
"""

import json
import sys
from typing import Any

import numpy as np
import simulate_kernels  # first: it tells Numba to simulate

from neurogen.testing import recorded

SIZES = {"warp": 4, "parts": 4, "listed": 64, "ranked": 16}
LAUNCH = {"grid": 3, "block": 8, "warp": SIZES["warp"], "offset": 0, "gap": 0}


def choose(row: recorded.RecordedRow, logits: np.ndarray, arguments: dict[str, np.ndarray]) -> np.ndarray:
    """One token a row from the kernel itself: the one place that knows how it is called."""
    simulate_kernels.set_sizes(SIZES)
    call = simulate_kernels.SAMPLERS[row.sampler].sample
    ids = np.full(len(logits), -7, np.int64)
    columns = tuple(arguments[name] for name in (*call.names, "seed", "position"))
    simulate_kernels.launch(call.kernel, LAUNCH | {"logits": stored(logits, row.dtype)}, (*columns, ids))
    return ids


def stored(logits: np.ndarray, dtype: str) -> Any:
    """The logits as a tensor of this dtype keeps them; exact, since the cases' logits are."""
    if dtype == "bfloat16":
        return (logits.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return logits.astype(np.float16).view(np.int16) if dtype == "float16" else logits


def main() -> None:
    np.seterr(all="ignore")  # overflow and invalid operations are part of the semantics, and silent on a card
    differences = recorded.check_with(choose, order=[int(case) for case in sys.argv[1:]])
    print(json.dumps([str(difference) for difference in differences]))  # noqa: T201


if __name__ == "__main__":
    main()
