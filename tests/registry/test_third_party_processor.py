"""A processor that a stranger wrote: installed by pip into an environment of its own, listed, run, and right."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
from environments import Environment

import neurogen
from neurogen import ParameterError, PluginError
from neurogen.models.language_model import LanguageModel
from neurogen.text.runner import Runner

SOURCE = Path(__file__).parents[1] / "plugins" / "neurogen-example-processor"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment into which pip has installed neurogen-example-processor, without network."""
    folder = tmp_path_factory.mktemp("third-party-processor")
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
    lines = (SOURCE / "neurogen_example_processor" / "__init__.py").read_text().splitlines()
    assert len(lines) < 40
    assert [line for line in lines if "import" in line.split()] == ["from collections import deque", "import neurogen"]


def test_processors_command_lists_it_without_a_direct_option(environment: Environment) -> None:
    listed = json.loads(environment.run("-m", "neurogen", "processors", "--json").stdout)
    entry = {processor["name"]: processor for processor in listed}["cooldown"]
    origin = (entry["distribution"], entry["version"], entry["status"])
    assert origin == ("neurogen-example-processor", "1.0", "loaded")
    (parameter,) = entry["parameters"]
    assert (parameter["name"], parameter["option"], parameter["default"]) == ("steps", None, 3)
    assert "repetition-penalty" in {processor["name"] for processor in listed}


@pytest.mark.slow
def test_run_command_uses_it(environment: Environment, tiny_model_dir: Path) -> None:
    arguments = ("--model", tiny_model_dir, "--sampler", "greedy", "--prompt", "once", "--max-new-tokens", "12")
    done = environment.run("-m", "neurogen", "run", *arguments, "--json", "--processor", "cooldown(steps=6)")
    result = json.loads(done.stdout)
    assert result["processors"] == ["cooldown(steps=6)"]
    ids = result["token_ids"]
    assert all(len(set(ids[at : at + 7])) == len(ids[at : at + 7]) for at in range(len(ids)))


def test_a_token_rests_for_so_many_steps(registry: neurogen.Registry, stories: LanguageModel) -> None:
    runner = Runner(
        stories,
        neurogen.load_sampler("greedy"),
        processors=registry.load_processors("neurogen-example-processor:cooldown(steps=30)"),
        max_new_tokens=31,
    )
    (result,) = runner.generate("Once upon a time")
    assert len(set(result.token_ids)) == 31


def test_its_parameters_are_checked_and_it_can_be_left_out(
    registry: neurogen.Registry, environment: Environment
) -> None:
    with pytest.raises(ParameterError, match="cooldown: steps must be an integer >= 1, got 0"):
        registry.load_processors("cooldown(steps=0)")
    with pytest.raises(PluginError, match=r"'cooldown' of neurogen-example-processor 1\.0 is disabled"):
        neurogen.Registry(disabled=["cooldown"]).load_processors("cooldown")
