"""Rows that reach every branch of a kernel, and what the CPU and simulated CUDA make of them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import ROOT

import neurogen
from neurogen import Param, RowParams, SamplerParams, TruncationSampler
from neurogen.kernels import cuda_launch

SIMULATE = Path(__file__).with_name("simulate_kernels.py")
VOCAB = 300  # above the number of parts, so that a part holds several tokens; not a multiple of the parts
FEW_ROWS = [0, 1, 5, 7, 9, 12]  # of `hard_rows`: normal, ties, -inf, more ties, signed zeros, temperature 0


class KeepAll(TruncationSampler):
    """Plain temperature sampling, the kernels below every TruncationSampler."""

    name = "keepall"
    api_version = 1

    class Params(SamplerParams):
        temperature: float = Param(1.0, ge=0, description="Divides the logits.")

    def keep(self, logits: torch.Tensor, params: Any) -> torch.Tensor:
        return torch.ones_like(logits, dtype=torch.bool)


def hard_rows(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    """Rows of every kind in the semantics table: ties, -inf, NaN, +inf, nothing left, flat, saturated, signed zeros."""
    x = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
    x[1] = np.round(x[1])
    x[2] = 0
    x[3, vocab // 3] = np.nan
    x[4] = -np.inf
    x[5, ::2] = -np.inf
    x[6, vocab - 1] = np.inf
    x[7] = np.round(x[7] / 3)
    x[8] = -40
    x[8, vocab // 2] = 12
    x[9] = np.where(rng.random(vocab) < 0.5, np.float32(0.0), np.float32(-0.0))
    x[10] *= 1e37
    x[11] = x[11] * 1e-3
    return x


SMALL = {"grid": 3, "block": 8, "warp": 4, "parts": 4, "listed": 64, "ranked": 16, "offset": 0, "gap": 0}
"""The sizes of a launch, and of warps and lists: so small that rows of a few hundred logits reach every branch."""


def make_case(seed: int, *, rows: int = 14, vocab: int = VOCAB, **sizes: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    temperature = rng.uniform(0.2, 2.0, rows)
    temperature[12] = 0
    k = rng.integers(1, vocab // 2 + 1, rows)
    k[0], k[1], k[5], k[7], k[10], k[13] = 0, 7, vocab, vocab - 1, 5, 16
    p = rng.uniform(0.05, 0.99, rows)
    p[0] = 1.0
    share = rng.uniform(0.0, 0.5, rows)
    share[0], share[1] = 0.0, 1.0
    return SMALL | {
        "logits": hard_rows(rng, rows, vocab),
        "bfloat16": False,
        "k": k,
        "p": p,
        "share": share,
        "temperature": temperature,
        "seed": rng.integers(-(2**62), 2**62, rows),
        "position": rng.integers(0, 10_000, rows),
        **sizes,
    }


def as_half(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    bits = torch.from_numpy(case["logits"]).to(dtype).view(torch.int16).numpy()
    return case | {"logits": bits.view(np.uint16) if dtype == torch.bfloat16 else bits}


def few_rows(case: dict[str, Any]) -> dict[str, Any]:
    """A case with some of its rows: simulating is slow, and not every launch needs all of them."""
    return {name: value[FEW_ROWS] if isinstance(value, np.ndarray) else value for name, value in case.items()}


def nearly_flat(case: dict[str, Any]) -> dict[str, Any]:
    """Rows with hundreds of logits in one bin of a histogram, all equal, or equal but for one."""
    rng = np.random.default_rng(0)
    logits = np.full_like(case["logits"], 5)
    logits[0] += (rng.integers(0, 3, logits.shape[1]) * 2.0**-21).astype(np.float32)
    logits[1] += (rng.integers(0, 200, logits.shape[1]) * 2.0**-21).astype(np.float32)
    logits[2, 7] = 5.000001
    logits[3, 7] = 40
    logits[4, -100:] = -np.inf
    logits[5] = np.where(rng.random(logits.shape[1]) < 0.5, 1e-42, -1e-42)
    return case | {"logits": logits, "k": np.array([1, 40, 200, 299, 150, 100]), "temperature": np.full(6, 1.0)}


def run_simulator(cases: dict[str, dict[str, Any]], folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The results of all cases, which two processes share between them, every other case each."""
    names = list(cases)
    shares = [share for share in (names[::2], names[1::2]) if share]
    running = []
    for number, share in enumerate(shares):
        source, target = folder / f"cases{number}.npz", folder / f"results{number}.npz"
        np.savez(source, **{f"{name}/{key}": value for name in share for key, value in cases[name].items()})
        command = [sys.executable, str(SIMULATE), str(source), str(target)]
        running.append((target, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    results: dict[str, dict[str, np.ndarray]] = {}
    for target, process in running:
        _, errors = process.communicate(timeout=540)
        assert process.returncode == 0, errors[-3000:]
        with np.load(target) as file:
            for key in file:
                name, _, field = key.partition("/")
                results.setdefault(name, {})[field] = file[key]
    return results


def logits_of(case: dict[str, Any]) -> torch.Tensor:
    dtypes = {"float32": torch.float32, "uint16": torch.bfloat16, "int16": torch.float16}
    bits = case["logits"]
    return torch.from_numpy(bits.view(np.int16) if bits.dtype == np.uint16 else bits).view(dtypes[str(bits.dtype)])


def row_parameters(sampler: neurogen.Sampler, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(case[name]) for name in type(sampler.params).model_fields}


def assert_equal_bit_for_bit(
    name: str, sampler: neurogen.Sampler, case: dict[str, Any], result: dict[str, np.ndarray]
) -> None:
    """The CPU's ids, probabilities and supports are those of the simulator."""
    logits, params = logits_of(case), row_parameters(sampler, case)
    numbers = {"seed": torch.from_numpy(case["seed"]), "position": torch.from_numpy(case["position"])}
    ids = sampler.sample(logits, check=False, **numbers, **params)
    assert ids.tolist() == result[f"{name}.ids"].tolist()
    assert np.array_equal(sampler.probs(logits, check=False, **params).numpy(), result[f"{name}.probs"])
    assert np.array_equal(sampler.support(logits, check=False, **params).numpy(), result[f"{name}.support"])


NAMES = ["greedy", "topk", "topp", "temperature", "minp"]


class Launches:
    """Stands in for what numba and torch know of a card, and keeps what would have been launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.compiled: list[Any] = []
        monkeypatch.setattr(cuda_launch.cuda, "gpus", [nullcontext()])
        monkeypatch.setattr(cuda_launch.cuda, "external_stream", lambda handle: f"stream {handle}")
        monkeypatch.setattr(cuda_launch.cuda, "jit", self.jit)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(cuda_launch, "_multiprocessors", lambda device: 10)

    def jit(self, signature: Any, **options: Any) -> Any:
        def compile_function(function: Any) -> Any:
            self.compiled.append(signature)
            return self

        return compile_function

    def __getitem__(self, configuration: Any) -> Any:
        return lambda *arguments: self.made.append((*configuration, *arguments))


# The kernels of a package

PLUGINS = ROOT / "plugins"


def import_path() -> list[str]:
    return [str(folder) for folder in sorted(PLUGINS.iterdir())]


def simulated(module: str, cases: Path, target: Path, *folders: str) -> dict[str, dict[str, np.ndarray]]:
    """The results of the cases of a file; the module is one of the plugins', or lies in one of the folders."""
    command = [sys.executable, "-m", "neurogen.testing.simulator", f"{module}.cuda", str(cases), str(target)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*import_path(), *folders])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, dict[str, np.ndarray]] = {}
    with np.load(target) as file:
        for key in file:
            name, _, field = key.partition("/")
            results.setdefault(name, {})[field] = file[key]
    return results


def kernels_of(module: str) -> Any:
    backend = importlib.import_module(f"{module}.cpu")
    return getattr(backend, "kernels", backend)


def on_cpu(module: str, case: dict[str, Any]) -> dict[str, np.ndarray]:
    calls, logits = kernels_of(module), logits_of(case)
    rows = RowParams(**{name: torch.from_numpy(case[name]) for name in calls.sample.names})
    seed, position = torch.from_numpy(case["seed"]), torch.from_numpy(case["position"])
    return {
        "ids": calls.sample(logits, seed, position, rows).numpy(),
        "probs": calls.probs(logits, rows).numpy(),
        "support": calls.support(logits, rows).numpy(),
    }
