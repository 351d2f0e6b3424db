"""A sampler that a stranger wrote: installed by pip into an environment of its own, listed, run, and right."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from environments import Environment
from minp_helpers import reference, rows

import neurogen
from neurogen import Contract, InvalidLogitsError, ParameterError, Sampler

SOURCE = Path(__file__).parents[1] / "plugins" / "neurogen-minp-example"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment into which pip has installed neurogen-minp-example, without network."""
    folder = tmp_path_factory.mktemp("third-party")
    source = folder / "source"
    shutil.copytree(SOURCE, source)  # building writes into the source folder
    fresh = Environment(folder / "venv")
    fresh.run("-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir", source)
    return fresh


@pytest.fixture
def registry(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> neurogen.Registry:
    """A registry of this process that also discovers what pip installed there."""
    monkeypatch.syspath_prepend(environment.packages)
    importlib.invalidate_caches()
    return neurogen.Registry(disabled=())


def test_package_is_short_and_uses_the_public_api_alone() -> None:
    lines = (SOURCE / "neurogen_minp_example" / "__init__.py").read_text().splitlines()
    assert len(lines) < 30
    assert [line for line in lines if "import" in line.split()] == ["import neurogen"]


def test_pip_installs_it_into_the_fresh_environment_only(environment: Environment) -> None:
    assert (environment.packages / "neurogen_minp_example" / "__init__.py").is_file()
    where = environment.run("-c", "import neurogen_minp_example as it; print(it.__file__)").stdout.strip()
    assert Path(where).is_relative_to(environment.folder)
    assert not (SOURCE / "build").exists()
    assert all(plugin.name != "minp-example" for plugin in neurogen.Registry().plugins())


def test_samplers_command_lists_it_with_its_distribution(environment: Environment) -> None:
    listed = json.loads(environment.run("-m", "neurogen", "samplers", "--json").stdout)
    entry = {sampler["name"]: sampler for sampler in listed}["minp-example"]
    assert (entry["distribution"], entry["version"], entry["status"]) == ("neurogen-minp-example", "1.0", "loaded")
    options = {parameter["option"]: parameter for parameter in entry["parameters"]}
    assert set(options) == {"--min-p", "--temperature"}
    assert (options["--min-p"]["default"], options["--min-p"]["bounds"]) == (0.1, {"ge": 0, "le": 1})
    assert {sampler["name"] for sampler in listed} >= {"greedy", "topk", "topp"}


@pytest.mark.slow
def test_run_command_continues_a_prompt_with_it(environment: Environment, tiny_model_dir: Path) -> None:
    prompt = ("--model", str(tiny_model_dir), "--prompt", "once upon a time", "--max-new-tokens", "5")

    def run(*options: str) -> str:
        return environment.run("-m", "neurogen", "run", *prompt, "--seed", "3", *options).stdout

    drawn = run("--sampler", "minp-example", "--min-p", "0.1")
    assert drawn.strip()
    assert run("--sampler", "minp-example", "--min-p", "1") == run("--sampler", "greedy")


def test_load_sampler_finds_it_and_checks_its_parameters(registry: neurogen.Registry) -> None:
    sampler = registry.load_sampler("minp-example", min_p=0.3)
    assert sampler.origin == "neurogen-minp-example 1.0"
    assert (
        repr(registry.load_sampler("neurogen-minp-example:minp-example")) == "minp-example(min_p=0.1, temperature=1.0)"
    )
    with pytest.raises(ParameterError, match=r"minp-example: min_p must be a number in \[0, 1\], got 1.5"):
        registry.load_sampler("minp-example", min_p=1.5)
    registry.load_sampler("minp-example", temperature=0, require=Contract(argmax=True))


@pytest.fixture
def minp(registry: neurogen.Registry) -> Sampler:
    return registry.load_sampler("minp-example")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("min_p", [0.02, 0.1, 0.7, 1.0])
def test_support_is_that_of_the_definition(minp: Sampler, min_p: float, temperature: float, dtype: torch.dtype) -> None:
    logits = rows().to(dtype)
    support = minp.support(logits, min_p=min_p, temperature=temperature).numpy()
    for row, got in zip(logits.float().numpy(), support, strict=True):
        np.testing.assert_array_equal(got, reference(row, min_p, temperature))


def test_min_p_0_keeps_every_token_above_minus_infinity(minp: Sampler) -> None:
    logits = rows()
    assert minp.support(logits, min_p=0.0).equal(logits > -torch.inf)


def test_smallest_temperature_keeps_the_best_tokens(minp: Sampler) -> None:
    logits = rows()
    assert minp.support(logits, temperature=1e-300).equal(logits == logits.amax(dim=-1, keepdim=True))


def test_each_row_has_parameters_of_its_own(minp: Sampler) -> None:
    logits = rows()
    min_p = torch.linspace(0.02, 1, len(logits), dtype=torch.float64)
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0, 1.5] * 2, dtype=torch.float64)
    support = minp.support(logits, min_p=min_p, temperature=temperature).numpy()
    for i, row in enumerate(logits.numpy()):
        np.testing.assert_array_equal(support[i], reference(row, min_p[i].item(), temperature[i].item()))


def test_samples_come_from_the_support_and_reach_all_of_it(minp: Sampler) -> None:
    row = torch.tensor([[0.0, -0.5, -1.0, -5.0, 0.2, -torch.inf]])
    logits = row.expand(400, -1)
    ids = minp.sample(logits, seed=torch.arange(400), position=9)
    assert set(ids.tolist()) == set(np.flatnonzero(reference(row[0].numpy(), 0.1, 1.0))) == {0, 1, 2, 4}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_invalid_rows_are_named_and_leave_the_others_alone(minp: Sampler, temperature: float) -> None:
    logits = rows()
    logits[1, 3] = torch.nan
    logits[4, 600] = torch.inf
    logits[9] = -torch.inf
    for call in (minp.sample, minp.support, minp.probs):
        with pytest.raises(InvalidLogitsError) as caught:
            call(logits, temperature=temperature)
        assert caught.value.rows == (1, 4, 9)
    ids = minp.sample(logits, temperature=temperature, seed=7, check=False)
    support = minp.support(logits, temperature=temperature, check=False)
    for i, row in enumerate(logits.numpy()):
        if i in (1, 4, 9):
            assert ids[i] == -1
            assert not support[i].any()
        else:
            np.testing.assert_array_equal(support[i].numpy(), reference(row, 0.1, temperature))
            assert support[i, ids[i]]
