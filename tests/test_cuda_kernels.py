"""CUDA kernels without a GPU: the simulator against the CPU kernels and the reference, and compilation to PTX.

The simulator runs the same kernel sources thread by thread. Ids, probabilities and supports must equal the CPU's bit
for bit, since both come from the same integer masses.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import neurogen
from neurogen import TruncationSampler, reference
from neurogen.parameters import Param, SamplerParams

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


def make_case(seed: int, *, rows: int = 14, vocab: int = VOCAB, grid: int = 3, block: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    temperature = rng.uniform(0.2, 2.0, rows)
    temperature[12] = 0
    k = rng.integers(1, vocab // 2, rows)
    k[0], k[1], k[5] = 0, 7, vocab
    p = rng.uniform(0.05, 0.99, rows)
    p[0] = 1.0
    return {
        "logits": hard_rows(rng, rows, vocab),
        "bfloat16": False,
        "k": k,
        "p": p,
        "temperature": temperature,
        "seed": rng.integers(-(2**62), 2**62, rows),
        "position": rng.integers(0, 10_000, rows),
        "grid": grid,
        "block": block,
    }


def as_half(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    half = torch.from_numpy(case["logits"]).to(dtype)
    return case | {"logits": half.view(torch.int16).numpy().view(np.uint16), "bfloat16": dtype == torch.bfloat16}


def few_rows(case: dict[str, Any]) -> dict[str, Any]:
    """A case with some of its rows: the simulator is slow, and not every launch needs all of them."""
    return {name: value[FEW_ROWS] if isinstance(value, np.ndarray) else value for name, value in case.items()}


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
    if case["logits"].dtype == np.float32:
        return torch.from_numpy(case["logits"])
    dtype = torch.bfloat16 if case["bfloat16"] else torch.float16
    return torch.from_numpy(case["logits"].view(np.int16)).view(dtype)


CASES = {  # the costly ones in turns, since two processes take every other one
    "float32": make_case(1),
    "float16": as_half(make_case(5, block=2), torch.float16),
    "transposed": (lambda case: case | {"logits": np.asfortranarray(case["logits"])})(few_rows(make_case(7))),
    "bfloat16": as_half(make_case(6, block=2), torch.bfloat16),
    "odd block": few_rows(make_case(3, block=7, grid=5)),
    "one thread": few_rows(make_case(2, block=1, grid=1)),
    "vocab 1": few_rows(make_case(4, block=2) | {"logits": np.zeros((14, 1), np.float32)}),
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    return run_simulator(CASES, tmp_path_factory.mktemp("simulator"))


@pytest.fixture(scope="module")
def samplers() -> dict[str, neurogen.Sampler]:
    loaded: dict[str, neurogen.Sampler] = {name: neurogen.load_sampler(name) for name in ("greedy", "topk", "topp")}
    return loaded | {"temperature": KeepAll()}


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
    if name != "greedy":
        assert np.array_equal(sampler.probs(logits, check=False, **params).numpy(), result[f"{name}.probs"])
        assert np.array_equal(sampler.support(logits, check=False, **params).numpy(), result[f"{name}.support"])


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("name", ["greedy", "topk", "topp", "temperature"])
def test_simulated_kernels_equal_the_cpu_bit_for_bit(
    name: str, case_name: str, simulated: dict[str, dict[str, np.ndarray]], samplers: dict[str, neurogen.Sampler]
) -> None:
    assert_equal_bit_for_bit(name, samplers[name], CASES[case_name], simulated[case_name])


@pytest.mark.parametrize("case_name", [name for name in CASES if name != "vocab 1"])
def test_simulated_supports_equal_the_reference(case_name: str, simulated: dict[str, dict[str, np.ndarray]]) -> None:
    case, result = CASES[case_name], simulated[case_name]
    compared = 0
    for r, row in enumerate(logits_of(case).float().numpy()):
        k, p, temperature = int(case["k"][r]), float(case["p"][r]), float(case["temperature"][r])
        if not reference.is_valid(row):
            assert result["greedy.ids"][r] == result["topk.ids"][r] == result["topp.ids"][r] == -1
            assert not result["topk.support"][r].any()
            assert not result["topp.probs"][r].any()
            continue
        assert result["greedy.ids"][r] == reference.argmax(row)
        assert np.array_equal(result["topk.support"][r], reference.topk_support(row, k, temperature))
        if temperature == 0 or p == 1 or reference.nucleus_margin(row, p, temperature) > 1e-6:
            assert np.array_equal(result["topp.support"][r], reference.topp_support(row, p, temperature))
            compared += 1
    assert compared >= len(case["logits"]) // 2


@pytest.mark.slow
def test_simulated_kernels_agree_with_many_threads(tmp_path: Path, samplers: dict[str, neurogen.Sampler]) -> None:
    cases = {str(seed): few_rows(make_case(seed, vocab=1100, block=32, grid=6)) for seed in (8, 9)}
    results = run_simulator(cases, tmp_path)
    for seed, case in cases.items():
        for name, sampler in samplers.items():
            assert_equal_bit_for_bit(name, sampler, case, results[seed])


def kernel_signatures() -> list[tuple[str, str, Any]]:
    """(module, kernel, argument types after the logits) of every CUDA kernel that ships."""
    from numba import types

    ids, seeds = types.int64[::1], types.int64[::1]
    temperature, k, p = types.float64[::1], types.int64[::1], types.float64[::1]
    outputs = {
        "_sample": (seeds, seeds, ids),
        "_probs": (types.float32[:, ::1],),
        "_support": (types.boolean[:, ::1],),
    }
    parameters = {
        "neurogen_topk.cuda": (k, temperature),
        "neurogen_topp.cuda": (p, temperature),
        "neurogen.kernels.temperature.cuda": (temperature,),
    }
    signatures = [("neurogen_greedy.cuda", "_sample", (ids,))]
    return signatures + [
        (module, kernel, rows + tail) for module, rows in parameters.items() for kernel, tail in outputs.items()
    ]


def compile_to_ptx(module: str, kernel: str, arguments: Any, logits: Any, cc: tuple[int, int]) -> str:
    from numba import cuda, types

    function = getattr(importlib.import_module(module), kernel).py_func
    ptx, _ = cuda.compile(
        function,
        types.void(logits, types.boolean, *arguments),
        cc=cc,
        device=False,
        abi="numba",
        output="ptx",
        launch_bounds=256,
    )
    return str(ptx)


@pytest.fixture
def without_card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets numba-cuda compile for a compute capability where there is no device to ask."""
    pytest.importorskip("numba.cuda.cudadrv.nvvm", reason="numba-cuda with NVVM is needed to compile (extra cuda)")
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        pytest.skip("the simulator cannot compile")
    from numba.cuda import dispatcher

    def pretend(cc: tuple[int, int]) -> None:
        monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=cc))

    return pretend


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize(("module", "kernel", "arguments"), kernel_signatures())
def test_every_cuda_kernel_compiles_to_ptx(
    module: str, kernel: str, arguments: Any, cc: tuple[int, int], without_card: Any, tmp_path: Path
) -> None:
    from numba import types

    without_card(cc)
    for logits in (types.Array(types.float32, 2, "A"), types.Array(types.uint16, 2, "A")):
        ptx = compile_to_ptx(module, kernel, arguments, logits, cc)
        assert f".target sm_{cc[0]}{cc[1]}" in ptx
        assert ".visible .entry" in ptx
        assert not re.search(r"\bfma\.rn\.f32\b", ptx), "a fused multiply-add rounds differently from the CPU"
        assert_fits_the_register_file(ptx, cc, tmp_path)


def assert_fits_the_register_file(ptx: str, cc: tuple[int, int], folder: Path) -> None:
    """Where an assembler is installed: the launch of 256 threads must fit 65,536 registers."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return
    file = folder / "kernel.ptx"
    file.write_text(ptx)
    done = subprocess.run(
        [ptxas, "-v", f"-arch=sm_{cc[0]}{cc[1]}", str(file), "-o", str(folder / "kernel.cubin")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    registers = int(re.search(r"Used (\d+) registers", done.stderr)[1])  # type: ignore[index]
    assert -(-registers // 8) * 8 * 256 <= 65_536
