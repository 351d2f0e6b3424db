"""The toolkit for kernels as a stranger uses it: min-p with a kernel for the CPU and one for CUDA (docs/kernels.md)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from minp_helpers import reference, rows

from neurogen import Sampler
from neurogen import reference as float64_reference

PACKAGE = Path(__file__).parents[1] / "plugins" / "neurogen-minp-kernels" / "neurogen_minp_kernels"
MARGIN = 1e-6  # of log-probability: masses have 24 bits


@pytest.fixture(scope="module")
def minp() -> Sampler:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE.parent)
        sampler: Sampler = importlib.import_module(PACKAGE.name).MinP()
        sampler.sample(torch.zeros(1, 2))  # imports the backend while it can be found
        return sampler


def test_a_sampler_with_both_kernels_is_under_40_lines_and_uses_the_public_api() -> None:
    lines = [line for file in PACKAGE.glob("*.py") for line in file.read_text().splitlines()]
    assert len(lines) < 40
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"neurogen", "neurogen.kernels.cpu", "neurogen.kernels.cuda"}


def far_from_the_border(row: np.ndarray, min_p: float, temperature: float) -> bool:
    x = row.astype(np.float64)
    if temperature == 0 or min_p == 1:
        return True
    with np.errstate(divide="ignore"):
        return bool(np.abs((x - x.max()) / temperature - np.log(min_p)).min() > MARGIN * (1 - np.log(min_p)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("min_p", [0.02, 0.1, 0.7])
def test_support_is_that_of_the_definition(minp: Sampler, min_p: float, temperature: float, dtype: torch.dtype) -> None:
    logits = rows().to(dtype)
    support = minp.support(logits, min_p=min_p, temperature=temperature).numpy()
    probs = minp.probs(logits, min_p=min_p, temperature=temperature).double().numpy()
    compared = 0
    for row, kept, p in zip(logits.float().numpy(), support, probs, strict=True):
        if far_from_the_border(row, min_p, temperature):
            expected = reference(row, min_p, temperature)
            np.testing.assert_array_equal(kept, expected)
            exact = float64_reference.probs(row, expected, temperature)
            assert np.abs(p - exact).sum() / 2 < 1e-6
            compared += 1
    assert compared >= 8


def test_min_p_0_keeps_every_token_above_minus_infinity_and_1_what_ties_with_the_best(minp: Sampler) -> None:
    logits = rows()
    assert minp.support(logits, min_p=0.0).equal(logits > -torch.inf)
    best = logits == logits.amax(dim=-1, keepdim=True)
    assert minp.support(logits, min_p=1.0, temperature=1e-3).equal(best)


def test_samples_come_from_the_support_and_invalid_rows_have_none(minp: Sampler) -> None:
    logits = rows().repeat(40, 1)
    logits[1, 3] = torch.nan
    logits[4] = -torch.inf
    ids = minp.sample(logits, seed=torch.arange(len(logits)), check=False)
    support = minp.support(logits, check=False)
    invalid = torch.zeros(len(logits), dtype=torch.bool)
    invalid[[1, 4]] = True
    assert ids[invalid].tolist() == [-1, -1]
    assert not support[invalid].any()
    assert support[~invalid].gather(1, ids[~invalid, None]).all()


def test_the_cuda_kernel_compiles_where_there_is_no_card() -> None:
    pytest.importorskip("numba.cuda.cudadrv.nvvm", reason="numba-cuda with NVVM is needed to compile (extra cuda)")
    script = (
        "import torch, neurogen_minp_kernels.cuda as minp\n"
        "from neurogen.kernels.cuda_compile import compile_to_ptx\n"
        "rows = (torch.float64, torch.float64, torch.int64, torch.int64, torch.int64)\n"
        "print(compile_to_ptx(minp.sample.kernel, minp.sample.kernel.signature(torch.bfloat16, *rows), (9, 0)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ".visible .entry" in done.stdout
