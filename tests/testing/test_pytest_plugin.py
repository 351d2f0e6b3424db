"""The fixture `neurogen_benchmark` in the package of a sampler's author, with and without pytest-benchmark."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import entry_points

import pytest
from environments import Environment
from model_helpers import ROOT

import neurogen
from neurogen import ParameterError
from neurogen.bench.results import BenchResult
from neurogen.testing.benchmark import NeurogenBenchmark

AUTHORS_TESTS = """
import sys


def test_start():
    assert "neurogen.testing.pytest_plugin" in sys.modules
    assert not {"torch", "numba", "numpy"} & set(sys.modules)


def test_speed(neurogen_benchmark):
    result = neurogen_benchmark("minp-example", min_p=0.2, vocab=600, batch=2, seconds=0.02)
    assert result.ratio_to_floor > 0
    assert result.ratio_to("torch") > 0
    assert result.times_faster_than("torch") > 0
    assert result.label == "minp-example(min_p=0.2, temperature=1.0)"
"""


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with neurogen-minp-example, and its author's tests in `tests`."""
    folder = tmp_path_factory.mktemp("author")
    shutil.copytree(ROOT / "tests" / "plugins" / "neurogen-minp-example", folder / "source")
    fresh = Environment(folder / "venv")
    pip = ("-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    fresh.run(*pip, folder / "source")
    tests = fresh.folder / "tests"
    tests.mkdir()
    (tests / "pytest.ini").write_text(
        "[pytest]\naddopts = -p no:hypothesispytest -p no:anyio\nfilterwarnings = error\n"
    )
    (tests / "test_minp.py").write_text(AUTHORS_TESTS)
    return fresh


def run_tests(author: Environment, *arguments: str) -> str:
    return author.run("-m", "pytest", "tests", "-p", "no:cacheprovider", *arguments).stdout


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not any(entry.value == "neurogen.testing.pytest_plugin" for entry in entry_points(group="pytest11")):
        pytest.fail("neurogen as installed offers no pytest plugin: install it again, remove a stale neurogen.egg-info")


@pytest.mark.slow
def test_ratios_are_recorded_with_pytest_benchmark(author: Environment) -> None:
    assert "2 passed" in run_tests(author, "--benchmark-json", "times.json")
    (recorded,) = json.loads((author.folder / "times.json").read_text())["benchmarks"]
    assert recorded["group"] == "neurogen normal float32 vocab=600 batch=2 cpu"
    assert recorded["extra_info"]["sampler"] == "minp-example(min_p=0.2, temperature=1.0)"
    assert recorded["extra_info"]["ratio_to_floor"] > 0
    assert recorded["extra_info"]["ratio_to_torch"] > 0
    assert recorded["stats"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        (["-p", "no:benchmark"], "2 passed"),
        (["--benchmark-only"], "1 passed, 1 skipped"),
        (["--benchmark-skip"], "1 passed, 1 skipped"),
        (["--benchmark-disable"], "2 passed"),
    ],
    ids=" ".join,
)
def test_it_goes_with_and_without_pytest_benchmark(author: Environment, arguments: list[str], outcome: str) -> None:
    assert outcome in run_tests(author, *arguments)


@pytest.mark.slow
def test_the_command_measures_it_beside_peers_with_its_parameters(author: Environment) -> None:
    cell = ("--vocab", "600", "--batch", "2", "--kind", "normal", "--seconds", "0.02")
    done = author.run("-m", "neurogen", "bench", "minp-example", "greedy", *cell, "--min-p", "0.3", "--json")
    minp, greedy = json.loads(done.stdout)["results"]
    assert minp["params"] == {"min_p": 0.3, "temperature": 1.0}
    assert greedy["params"] == {}
    assert {"floor", "torch"} <= set(minp["to_peers"])
    assert "temperature" in minp["peer_notes"]["torch"]  # all that is known of a sampler of this name


def test_it_measures_a_sampler_that_is_made_already() -> None:
    result = NeurogenBenchmark()(
        neurogen.load_sampler("topk", k=3), vocab=100, kind="flat", dtype="bfloat16", peers=["torch"], seconds=0.01
    )
    assert isinstance(result, BenchResult)
    assert str(result.cell) == "flat bfloat16 vocab=100 batch=1"
    assert set(result.to_peers) == {"torch"}
    assert result.params == {"k": 3, "temperature": 0.8}


def test_what_cannot_be_measured_is_refused_in_words() -> None:
    measure = NeurogenBenchmark()
    with pytest.raises(ParameterError, match="kind cannot be 'steep': Input should be 'normal', 'real', 'flat'"):
        measure("topk", kind="steep")
    with pytest.raises(ParameterError, match="vocab cannot be 0"):
        measure("topk", vocab=0)
    with pytest.raises(ParameterError, match=r"topk: k must be an integer >= 0, got -1"):
        measure("topk", k=-1)
    with pytest.raises(ParameterError, match=r"topk.* has its parameters already: give k when making it"):
        measure(neurogen.load_sampler("topk"), k=2)
    with pytest.raises(ParameterError, match="There is no peer 'jax'"):
        measure("topk", peers=["jax"])
