"""Runs every CUDA kernel in Numba's simulator on the cases of one file; a process of its own, see test_cuda_kernels.

Usage: python simulate_kernels.py CASES.npz RESULTS.npz
"""

import importlib
import os
import sys
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import numpy as np

MODULES = {
    "greedy": ("neurogen_greedy.cuda", ()),
    "topk": ("neurogen_topk.cuda", ("k", "temperature")),
    "topp": ("neurogen_topp.cuda", ("p", "temperature")),
    "temperature": ("neurogen.kernels.temperature.cuda", ("temperature",)),
}


def simulate(case: dict[str, Any], grid: int, block: int) -> dict[str, Any]:
    """ids, probs and support of every sampler on one batch of logits."""
    logits = case["logits"]
    bfloat16 = bool(case["bfloat16"])
    results = {}
    for name, (module_name, parameters) in MODULES.items():
        module = importlib.import_module(module_name)
        rows = [case[parameter] for parameter in parameters]
        ids = np.full(len(logits), -7, np.int64)
        numbers = [] if name == "greedy" else [case["seed"], case["position"]]
        module._sample[grid, block](logits, bfloat16, *rows, *numbers, ids)
        results[f"{name}.ids"] = ids
        if name != "greedy":
            probs = np.full(logits.shape, np.nan, np.float32)
            module._probs[grid, block](logits, bfloat16, *rows, probs)
            support = np.zeros(logits.shape, np.bool_)
            module._support[grid, block](logits, bfloat16, *rows, support)
            results |= {f"{name}.probs": probs, f"{name}.support": support}
    return results


def main() -> None:
    np.seterr(all="ignore")  # overflow and invalid operations are part of the semantics, and silent on a card
    source, target = sys.argv[1:]
    with np.load(source) as file:
        cases: dict[str, dict[str, Any]] = {}
        for key in file:
            case, _, field = key.partition("/")
            cases.setdefault(case, {})[field] = file[key]
    results = {
        f"{name}/{key}": value
        for name, case in cases.items()
        for key, value in simulate(case, int(case["grid"]), int(case["block"])).items()
    }
    np.savez(target, **results)


if __name__ == "__main__":
    main()
