"""Samplers that truncate at one temperature and draw at another, as llama.cpp does: on the CPU and simulated CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kernel_helpers import few_rows, make_case, on_cpu, simulated

from neurogen import reference

pytestmark = pytest.mark.slow

DEFINITIONS = {
    "nucleus_of_another": """
def keep(row, p):
    return nucleus(tempered(row, 1.0), p)

kernels = truncation(keep, "p")
""",
    "nucleus_twice": """
def keep(row, p):
    return nucleus(row, 0.99, nucleus(tempered(row, 1.0), p))

kernels = truncation(keep, "p")
""",
}
SECOND = {"nucleus_of_another": 1.0, "nucleus_twice": 0.99}


def make_rows() -> dict[str, Any]:
    """Nuclei that are listed at once, found by histograms, and the whole row; temperatures on both sides of 1."""
    case = few_rows(make_case(31, vocab=600))
    logits = np.random.default_rng(31).normal(size=(6, 600)).astype(np.float32)
    logits[::2] *= 2
    return case | {
        "logits": logits,
        "p": np.array([0.1, 0.6, 0.9, 0.3, 0.95, 1.0]),
        "temperature": np.array([0.3, 0.3, 2.0, 0.7, 1.0, 0.5]),
    }


@pytest.fixture(scope="module", params=DEFINITIONS)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the kernels of a definition choose and write, on both devices."""
    name, folder = request.param, tmp_path_factory.mktemp("package")
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    for device in ("cpu", "cuda"):
        head = f"from neurogen.kernels.{device} import nucleus, tempered, truncation\n"
        (package / f"{device}.py").write_text(head + DEFINITIONS[name])
    case, cases = make_rows(), folder / "cases.npz"
    np.savez(cases, **{f"case/{key}": value for key, value in case.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        cpu = on_cpu(name, case)
    cuda = simulated(name, cases, folder / "results.npz", str(folder))["case"]
    return {"name": name, "case": case, "cpu": cpu, "cuda": cuda}


def test_the_second_temperature_weighs_what_the_first_keeps(
    results: dict[str, Any],
) -> None:
    case, cpu = results["case"], results["cpu"]
    for r, logits in enumerate(case["logits"].astype(np.float64)):
        kept = torch.from_numpy(reference.topp_support(case["logits"][r], float(case["p"][r]), 1.0)).numpy()
        masked = np.where(kept, logits, -np.inf)
        temperature = float(case["temperature"][r])
        again = reference.topp_support(masked.astype(np.float32), SECOND[results["name"]], temperature)
        weights = np.where(again, np.exp((masked - logits.max()) / temperature), 0.0)
        assert np.abs(cpu["probs"][r] - weights / weights.sum()).max() < 1e-6
        assert cpu["support"][r].tolist() == (weights > 0).tolist()
        assert cpu["support"][r][cpu["ids"][r]]


@pytest.mark.parametrize("what", ["ids", "probs", "support"])
def test_cuda_gives_what_the_cpu_gives(results: dict[str, Any], what: str) -> None:
    assert np.array_equal(results["cpu"][what], results["cuda"][what])
