"""What the command line lists of samplers and plugins, and takes or refuses as options of a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli_helpers import PROMPT, Invoke, lines, neurogen_command, offer

import neurogen
from neurogen import Param, Registry, SamplerParams

pytestmark = pytest.mark.usefixtures("registry")

# Listings


def test_samplers_lists_every_parameter_with_option_domain_and_default() -> None:
    result = neurogen_command("samplers")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["greedy", "neurogen-greedy", neurogen.__version__, "yes", "cpu,", "cuda"] in [row[:6] for row in rows]
    assert ["topk", "neurogen-topk", neurogen.__version__, "no", "cpu,", "cuda"] in [row[:6] for row in rows]
    assert ["topk", "k", "--top-k", "an", "integer", ">=", "0", "50"] in [row[:8] for row in rows]
    assert ["topp", "p", "--top-p", "a", "number", "in", "(0,", "1]", "0.9"] in [row[:9] for row in rows]
    assert "\x1b" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_samplers_json_has_bounds() -> None:
    entries = {entry["name"]: entry for entry in json.loads(neurogen_command("samplers", "--json").stdout)}
    assert {"greedy", "topk", "topp"} <= set(entries)
    assert (entries["greedy"]["deterministic"], entries["greedy"]["parameters"]) == (True, [])
    p = entries["topp"]["parameters"][0]
    assert (p["name"], p["option"], p["type"], p["default"]) == ("p", "--top-p", "float", 0.9)
    assert (p["bounds"], p["domain"]) == ({"gt": 0.0, "le": 1.0}, "a number in (0, 1]")
    assert entries["topk"]["backends"] == ["cpu", "cuda"]


def test_a_plugin_that_fails_is_listed_with_its_reason(registry: Registry) -> None:
    _break(registry, "topk")
    listing = neurogen_command("samplers")
    assert listing.exit_code == 0
    (row,) = [line for line in listing.stdout.splitlines() if line.startswith("topk")]
    assert "failed: " in row
    assert "ZeroDivisionError: no luck" in row
    assert "--top-p" in listing.stdout
    assert "--top-k" not in listing.stdout


def test_plugins_tells_status_and_cause_and_strict_fails(registry: Registry) -> None:
    assert neurogen_command("plugins", "--strict").exit_code == 0
    _break(registry, "topk")
    assert neurogen_command("plugins").exit_code == 0
    strict = neurogen_command("plugins", "--json", "--strict")
    assert strict.exit_code == 1
    entries = {entry["name"]: entry for entry in json.loads(strict.stdout)}
    assert (entries["topk"]["status"], entries["topp"]["status"]) == ("failed", "loaded")
    assert (entries["topk"]["distribution"], entries["topk"]["version"]) == ("neurogen-topk", neurogen.__version__)
    assert "no luck" in entries["topk"]["error"]
    assert entries["topp"]["load_seconds"] >= 0


def test_plugins_says_what_is_left_out_under_a_name_that_nothing_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROGEN_DISABLE_PLUGINS", "tpok,topp")
    monkeypatch.setattr("neurogen.registry.registry._default", Registry())
    listing = neurogen_command("plugins", "--json")
    assert listing.stderr == (
        "NEUROGEN_DISABLE_PLUGINS names 'tpok', and no plugin here is called so: check the spelling.\n"
    )
    assert {entry["name"]: entry["status"] for entry in json.loads(listing.stdout)}["topp"] == "disabled"
    assert neurogen_command("samplers").stderr == ""


def test_without_plugins_both_listings_say_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.registry.registry._default", Registry(entry_points=[]))
    for command in ("samplers", "plugins"):
        result = neurogen_command(command)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "pip install" in result.stderr
        assert neurogen_command(command, "--json").stdout == "[]\n"


def test_a_name_offered_twice_is_listed_as_it_has_to_be_typed(registry: Registry) -> None:
    class Other(neurogen.load_sampler("topk").__class__):  # type: ignore[misc]
        """Another topk."""

    offer(registry, Other)
    names = [entry["name"] for entry in json.loads(neurogen_command("samplers", "--json").stdout)]
    assert names == ["greedy", "neurogen-strange:topk", "neurogen-topk:topk", "topp"]


def _break(registry: Registry, name: str) -> None:
    def load() -> None:
        raise ZeroDivisionError("no luck")

    plugin = registry.find(name)
    plugin.load_module, plugin.plugin_class, plugin.status = load, None, "found"


# Options of the sampler


def test_run_help_shows_how_to_see_a_samplers_options() -> None:
    text = neurogen_command("run", "--help").stdout
    assert "neurogen run --sampler NAME --help" in text.replace("main run", "neurogen run")
    assert "Installed: greedy, topk, topp" in " ".join(text.split())
    assert "--top-k" not in text


@pytest.mark.parametrize("spelling", [["--sampler", "topk"], ["--sampler=topk"], ["-s", "topk"], ["-stopk"]])
@pytest.mark.parametrize("first", [True, False])
def test_run_help_shows_the_options_of_the_sampler(spelling: list[str], first: bool) -> None:
    result = neurogen_command("run", *(["--help", *spelling] if first else [*spelling, "--help"]))
    text = " ".join(result.stdout.split())
    assert (
        f"Options of topk (neurogen-topk {neurogen.__version__}): --top-k INTEGER Tokens to draw from; 0 keeps all."
        in text
    )
    assert "[an integer >= 0; default: 50]" in text
    assert "--temperature NUMBER" in text
    assert "--max-new-tokens" in text


def test_help_names_a_sampler_that_has_no_options() -> None:
    text = neurogen_command("run", "--sampler", "greedy", "--help").stdout
    assert "Options of greedy" not in text
    assert "--temperature" not in text


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["topk", "--top-p", "1"], "'--top-p': topk has --top-k and --temperature; --top-p belongs to topp."),
        (["topk", "--top-p=0.5"], "No such option '--top-p'"),
        (["greedy", "--temperature", "1"], "greedy has no options of its own; --temperature belongs to topk and topp."),
        (["topk", "--k", "5"], "Did you mean --top-k?"),
        (["topk", "--top-kk", "5"], "Did you mean --top-k?"),
        (["topk", "--max-tokens", "5"], "Did you mean --max-new-tokens?"),
        (["topk", "--top-k", "-1"], "Invalid value for '--top-k': topk: k must be an integer >= 0, got -1."),
        (["topk", "--top-k", "1.5"], "Invalid value for '--top-k': topk: k must be an integer >= 0, got '1.5'."),
        (["topp", "--top-p", "1.5"], "Invalid value for '--top-p': topp: p must be a number in (0, 1], got 1.5."),
        (["topp", "--top-p", "0"], "Invalid value for '--top-p': topp: p must be a number in (0, 1], got 0.0."),
        (["topk", "--temperature", "nan"], "'--temperature': topk: temperature must be a finite number >= 0, got nan."),
        (["topk", "--temperature", "warm"], "temperature must be a finite number >= 0, got 'warm'."),
        (["topk", "-n", "0"], "Invalid value for '-n': it must be an integer >= 1, got '0'."),
        (["topk", "--seed", "9223372036854775808"], "'--seed': it must be an integer of 64 bits"),
        (["topk", "--seed", "9223372036854775807", "-n", "2"], "--seed 9223372036854775807 is too large"),
        (["topk", "--logprobs", "3"], "add --json or --output FILE.jsonl"),
        (["topk", "--logprobs", "-1"], "'--logprobs': it must be an integer >= 0, got '-1'."),
        (["topk", "--stop", ""], "'--stop': it must not be empty."),
        (["topk", "--device", "tpu"], "'--device': it must be auto, cpu, cuda or cuda:N"),
        (["topk", "--dtype", "int8"], "'--dtype'"),
        (["topk", "--prompt", ""], "'--prompt': the prompt is empty."),
        (["topk", "--prompts", "x.jsonl"], "Give either --prompt or --prompts, not both."),
        (["topk", "--stream", "--json"], "give one of them"),
        (["topk", "--model", ""], "Invalid value for '--model': it must not be empty."),
        (["topk", "--top-kk", "5"], "Try 'main run --sampler topk --help' for help."),
        (["topk", "--seed", "x"], "Usage: main run --sampler topk [OPTIONS]"),
        (["topk", "Hello"], "Unexpected argument 'Hello'. A prompt is given with --prompt TEXT."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    run: Invoke, arguments: list[str], message: str
) -> None:
    result = run(*arguments[:1], "--prompt", PROMPT, *arguments[1:])
    assert message in result.stderr
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("arguments", [[], ["--prompt", "x"], ["--top-k", "5"], ["--prompt", "--sampler"]])
def test_a_run_without_sampler_lists_the_installed_ones(arguments: list[str]) -> None:
    result = neurogen_command("run", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Choose one with --sampler: greedy, topk or topp." in result.stderr


@pytest.mark.usefixtures("no_model")
def test_an_unknown_sampler_is_an_error_with_the_nearest() -> None:
    result = neurogen_command("run", "--sampler", "topq", "--prompt", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: There is no sampler 'topq'. Installed: greedy, topk, topp. Did you mean 'topp'?\n"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("option", ["--seed", "--no-chat", "--help", "--debug", "-n", "--with space"])
def test_an_option_of_a_sampler_that_run_has_already_is_an_error_of_the_plugin(registry: Registry, option: str) -> None:
    class Strange(neurogen.TruncationSampler):
        """Keeps all."""

        name = "strange"
        api_version = 1

        class Params(SamplerParams):
            level: int = Param(1, option=option, description="A level.")
            temperature: float = Param(1.0, ge=0, description="Heat.")

        def keep(self, logits: Any, params: Any) -> Any:
            return logits > -float("inf")

    offer(registry, Strange)
    result = neurogen_command("run", "--sampler", "strange", "--prompt", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "The sampler 'strange' of neurogen-strange 9.9 (strange_plugin) cannot be used" in result.stderr
    assert f"its parameter 'level' asks for the option {option}" in result.stderr.replace("'" + option + "'", option)


def test_a_sampler_from_elsewhere_has_its_options_of_every_type(registry: Registry, run: Invoke) -> None:
    class Strange(neurogen.TruncationSampler):
        """Keeps all."""

        name = "strange"
        api_version = 1

        class Params(SamplerParams):
            level: int = Param(1, ge=0, le=9, description="A level.")
            kind: str = Param("a", description="A kind.")
            sharp: bool = Param(False, description="Sharp.")
            temperature: float = Param(1.0, ge=0, description="Heat.")

        def keep(self, logits: Any, params: Any) -> Any:
            return logits > -float("inf")

    offer(registry, Strange)
    assert "--sharp / --no-sharp" in neurogen_command("run", "-s", "strange", "--help").stdout
    result = run("strange", "--level", "3", "--kind", "b c", "--sharp", "--prompt", PROMPT, "--json")
    assert lines(result.stdout)[0]["params"] == {"level": 3, "kind": "b c", "sharp": True, "temperature": 1.0}
    assert lines(run("strange", "--no-sharp", "--prompt", PROMPT, "--json").stdout)[0]["params"]["sharp"] is False
    refused = run("strange", "--level", "10", "--prompt", PROMPT)
    assert "Invalid value for '--level': strange: level must be an integer in [0, 9], got 10." in refused.stderr
