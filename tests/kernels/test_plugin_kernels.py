"""The kernels of every plugin: on CUDA, simulated, the same as on the CPU, and on the CPU what the reference says."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_helpers import PLUGINS, as_half, few_rows, import_path, make_case, on_cpu, simulated

import neurogen
from neurogen import reference

MODULES = sorted(file.parent.name for file in PLUGINS.glob("*/neurogen_*/cuda.py"))
MARGIN = 1e-6  # of probability, entropy or deviation: masses have 24 bits


@pytest.fixture(scope="module", autouse=True)
def plugins_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in import_path():
            patch.syspath_prepend(folder)
        yield


def with_parameters(case: dict[str, Any]) -> dict[str, Any]:
    """A case with values for the row parameters of every sampler: usual ones, and the ends of their domains."""
    rows = len(case["logits"])
    rng = np.random.default_rng(rows)
    columns = {
        "min_p": (0.0, 1.0, 0.02, 0.3),
        "n": (0.0, 0.3, 1.0, 2.5),
        "epsilon": (0.0, 0.9, 0.003, 0.02),
        "typical_p": (1.0, 0.2, 0.6, 0.95),
        "threshold": (0.02, 0.005, 0.1, 1.0),
        "probability": (1.0, 0.5, 0.0, 0.9),
        "min_temperature": (0.0, 0.3, 1.0, 0.5),
        "max_temperature": (0.0, 2.0, 1.0, 3.0),
        "exponent": (1.0, 0.5, 2.0, 0.0),
        "mu": (2.0, 10.0, -1.0, 4.5),
    }
    return case | {
        name: np.array([values[(row + shift) % len(values)] for row in range(rows)])
        for (name, values), shift in zip(columns.items(), rng.integers(0, 4, len(columns)), strict=True)
    }


def equal_rows(case: dict[str, Any]) -> dict[str, Any]:
    """Rows of few distinct logits, so that many tokens are equally far from the entropy, or equally probable."""
    rng = np.random.default_rng(1)
    return case | {"logits": rng.integers(0, 3, case["logits"].shape).astype(np.float32) * np.float32(1.5)}


CASES = {
    "float32": with_parameters(make_case(1)),
    "bfloat16": with_parameters(as_half(few_rows(make_case(6, block=16, offset=2, gap=5)), torch.bfloat16)),
    "float16": with_parameters(as_half(few_rows(make_case(7, block=16, offset=3, gap=1)), torch.float16)),
    "equal": with_parameters(equal_rows(few_rows(make_case(3)))),
    "all listed": with_parameters(few_rows(make_case(8, listed=512, ranked=512))),
    "vocab 1": with_parameters(few_rows(make_case(4) | {"logits": np.zeros((14, 1), np.float32)})),
}


@pytest.fixture(scope="module")
def cases_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cases") / "cases.npz"
    np.savez(file, **{f"{name}/{key}": value for name, case in CASES.items() for key, value in case.items()})
    return file


IN_CI = {"neurogen_eta", "neurogen_topnsigma", "neurogen_typical", "neurogen_xtc", "neurogen_topk_topp"}
"""Of these CI runs the simulator, of all others `make exhaustive`; between them they use every function there is."""


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=pytest.mark.slow if module.partition(".")[0] in IN_CI else pytest.mark.exhaustive)
        for module in MODULES
    ],
)
def test_cuda_gives_the_same_tokens_probabilities_and_supports_bit_for_bit(
    module: str, cases_file: Path, tmp_path: Path
) -> None:
    results = simulated(module, cases_file, tmp_path / "results.npz")
    for name, case in CASES.items():
        for field, expected in on_cpu(module, case).items():
            differ = np.flatnonzero((results[name][field] != expected).reshape(len(expected), -1).any(axis=1))
            assert not len(differ), f"{name}: {field} of rows {differ.tolist()}"
        assert (results[name]["ids"] >= 0).any()


def nearby(module: str, row: np.ndarray, params: dict[str, Any]) -> bool:
    """Whether the set is another one when a parameter or the temperature moves by the precision of masses."""
    own = importlib.import_module(f"{module}.reference")
    supports = []
    for factor in (1 - 4 * MARGIN, 1.0, 1 + 4 * MARGIN):
        moved = {
            name: value * factor if (isinstance(value, float) and 0 < value < 1) or name in {"n", "tau"} else value
            for name, value in params.items()
        }
        supports.append(own.support(row, **moved))
    return any(not np.array_equal(supports[1], other) for other in supports)


GIVEN: dict[str, list[dict[str, Any]]] = {
    "neurogen_temperature": [{}, {"temperature": 0.3}],
    "neurogen_minp": [{"min_p": 0.05}, {"min_p": 0.3, "temperature": 2.0}, {"min_p": 0.0}, {"min_p": 1.0}],
    "neurogen_topnsigma": [{"n": 1.0}, {"n": 0.3}, {"n": 0.0}, {"n": 3.0, "temperature": 5.0}],
    "neurogen_epsilon": [{"epsilon": 0.001}, {"epsilon": 0.3}, {"epsilon": 0.0}],
    "neurogen_eta": [{"epsilon": 0.002}, {"epsilon": 0.05, "temperature": 0.5}, {"epsilon": 0.9}],
    "neurogen_typical": [{"typical_p": 0.9}, {"typical_p": 0.2}, {"typical_p": 1.0}, {"temperature": 0.5}],
    "neurogen_xtc": [{}, {"threshold": 0.01, "probability": 1.0}, {"threshold": 0.3, "probability": 0.2}],
    "neurogen_dynatemp": [{}, {"min_temperature": 0.1, "max_temperature": 3.0, "exponent": 2.0}],
    "neurogen_mirostat": [{}, {"tau": 1.0}, {"tau": 0.1}],
}
"""Parameters to try, and of every sampler temperature 0 beside."""


def rows_to_try(vocab: int) -> torch.Tensor:
    x = torch.randn(8, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    x[1, ::3] = -torch.inf
    x[2] *= 0.01
    x[3] = x[3].round()
    x[4] *= 8
    x[5, 1:] = -torch.inf
    return x


@pytest.mark.slow
@pytest.mark.parametrize("module", GIVEN)
def test_the_cpu_kernels_are_what_the_reference_says(module: str) -> None:
    own = importlib.import_module(f"{module}.reference")
    (cls,) = importlib.import_module(module).neurogen_samplers()
    zero = [{"temperature": 0.0}] if "temperature" in cls.Params.model_fields else []
    compared = tried = 0
    for params in GIVEN[module] + zero:
        sampler = cls(**params)
        values = sampler.params.model_dump()
        for vocab in (7, 300, 1000):
            for dtype in (torch.float32, torch.bfloat16):
                logits = rows_to_try(vocab).to(dtype)
                kept, probs = sampler.support(logits).numpy(), sampler.probs(logits).numpy()
                for r, row in enumerate(logits.float().numpy()):
                    tried += 1
                    if nearby(module, row, values):
                        continue
                    compared += 1
                    expected = own.support(row, **values)
                    np.testing.assert_array_equal(kept[r], expected, f"{params} row {r} of {vocab}")
                    exact = (
                        own.probs(row, **values)
                        if hasattr(own, "probs")
                        else reference.probs(row, expected, values["temperature"])
                    )
                    assert np.abs(probs[r] - exact).sum() / 2 < MARGIN, (params, r, vocab)
    assert compared > 0.8 * tried


@pytest.mark.slow
@pytest.mark.parametrize("module", GIVEN)
def test_tokens_do_not_depend_on_the_batch_its_order_or_strides(module: str) -> None:
    """And rows without a distribution have none, whatever stands beside them."""
    (cls,) = importlib.import_module(module).neurogen_samplers()
    sampler = cls(**GIVEN[module][-1])
    logits = rows_to_try(301).repeat(3, 1)
    logits[3, 7], logits[9, 0], logits[14] = torch.nan, torch.inf, -torch.inf
    seeds = torch.arange(len(logits))

    def chosen(rows: torch.Tensor, seed: torch.Tensor) -> list[int]:
        state = {"state": sampler.new_state(len(rows))} if sampler.stateful else {}
        return sampler.sample(rows, seed=seed, position=5, check=False, **state).tolist()  # type: ignore[no-any-return]

    ids = chosen(logits, seeds)
    assert [row for row, token in enumerate(ids) if token < 0] == [3, 9, 14]
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(2))
    assert chosen(logits[order], seeds[order]) == [ids[row] for row in order]
    assert [chosen(logits[row : row + 1], seeds[row : row + 1])[0] for row in range(len(logits))] == ids
    assert chosen(logits.t().contiguous().t(), seeds) == ids
    wide = torch.zeros(len(logits), 400)
    wide[:, 3:304] = logits
    assert chosen(wide[:, 3:304], seeds) == ids


def test_xtc_removes_by_a_number_of_its_own() -> None:
    """Both numbers of a seed and position are known, so both outcomes are."""
    from neurogen.kernels.numerics import random_bits, uniform

    sampler = neurogen.load_sampler("xtc", threshold=0.2, probability=0.5, temperature=1.0)
    logits = torch.tensor([[3.0, 2.9, 0.0, -1.0]])
    for seed in range(40):
        removes = uniform(random_bits(seed, 9, 1)) < 0.5
        token = sampler.sample(logits, seed=seed, position=9).item()
        assert not (removes and token == 0)
    assert {sampler.sample(logits, seed=seed, position=9).item() for seed in range(40)} >= {0, 1}


def test_a_state_of_mirostat_moves_as_its_reference_says() -> None:
    from neurogen_mirostat.reference import next_mu

    sampler = neurogen.load_sampler("mirostat", tau=3.0, eta=0.2, temperature=1.0)
    logits, state = rows_to_try(300)[:3], sampler.new_state(3)
    expected = state["mu"].numpy().copy()
    for position in range(6):
        ids = sampler.sample(logits, seed=torch.arange(3), position=position, state=state)
        for r, row in enumerate(logits.numpy()):
            expected[r] = next_mu(row, int(ids[r]), float(expected[r]), 3.0, 0.2, 1.0)
        np.testing.assert_allclose(state["mu"].numpy(), expected, atol=1e-5)
