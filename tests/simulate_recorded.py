"""Holds the CUDA kernels, in Numba's simulator, against some recorded cases; a process of its own.

Usage: python simulate_recorded.py CASE [CASE ...]     prints the differences as a JSON array of strings
"""

import importlib
import json
import os
import sys
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np

from neurogen.testing import recorded

MODULES = {"greedy": "neurogen_greedy.cuda", "topk": "neurogen_topk.cuda", "topp": "neurogen_topp.cuda"}
GRID, BLOCK = 3, 4


def choose(row: recorded.Row, logits: np.ndarray, arguments: dict[str, np.ndarray]) -> np.ndarray:
    """One token a row from the kernel itself: the one place that knows how it is called."""
    kernel = importlib.import_module(MODULES[row.sampler])._sample
    ids = np.full(len(logits), -7, np.int64)
    columns = [] if row.sampler == "greedy" else list(arguments.values())
    kernel[GRID, BLOCK](stored(logits, row.dtype), row.dtype == "bfloat16", *columns, ids)
    return ids


def stored(logits: np.ndarray, dtype: str) -> Any:
    """The logits as a tensor of this dtype keeps them; exact, since the cases' logits are."""
    if dtype == "bfloat16":
        return (logits.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return logits.astype(np.float16).view(np.uint16) if dtype == "float16" else logits


def main() -> None:
    np.seterr(all="ignore")  # overflow and invalid operations are part of the semantics, and silent on a card
    differences = recorded.check_with(choose, order=[int(case) for case in sys.argv[1:]])
    print(json.dumps([str(difference) for difference in differences]))  # noqa: T201


if __name__ == "__main__":
    main()
