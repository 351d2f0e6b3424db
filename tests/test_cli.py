"""The command line as a user meets it: what it prints where, what it refuses, with which exit code it ends."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import neurogen
from neurogen import Param, Registry, Sampler, SamplerParams, hookimpl
from neurogen.cli import main
from neurogen.cli.output import TextOutput
from neurogen.registry import ENTRY_POINT_GROUP
from neurogen.runner import Failure, TextDelta
from neurogen.runner import Result as Sequel

PROMPT = "once upon a time"
FIELDS = [
    "index", "sample", "prompt", "text", "token_ids", "sampler", "params", "seed", "finish_reason", "prompt_tokens",
    "new_tokens", "seconds", "tokens_per_second",
]  # fmt: skip
HEAVY = ("torch", "numba", "transformers", "sentencepiece", "rich", "numpy")
Invoke = Callable[..., Result]


def neurogen_command(*arguments: str) -> Result:
    """Run the command in this process; an exception that is no exit is the test's."""
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """A process that hears Ctrl-C even where these tests run in a shell's background, whose children ignore it."""
    command = [sys.executable, "-m", "neurogen", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, preexec_fn=_hear_ctrl_c, **{**pipes, **options})


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs from run to run."""
    return {name: value for name, value in result.items() if name not in ("seconds", "tokens_per_second")}


@pytest.fixture
def run(tiny_model_dir: Path) -> Invoke:
    """`neurogen run` with the tiny model and few tokens."""

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        fixed = ("run", "--model", str(tiny_model_dir), "--max-new-tokens", "6", "--sampler")
        result = CliRunner().invoke(main, [*fixed, *arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"once"\n{"prompt": "upon", "seed": 90, "params": {"k": 1}}\n{"text": "a time"}\n')
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("neurogen.models.load_model", load_model)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The three first samplers, whatever else is installed, in a registry of this test alone."""
    own = Registry(
        [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name in ("greedy", "topk", "topp")]
    )
    monkeypatch.setattr("neurogen.registry._default", own)
    return own


def offer(registry: Registry, cls: type[Sampler]) -> None:
    class Plugin:
        __name__ = "strange_plugin"

        @hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return [cls]

    registry.register(Plugin(), distribution="neurogen-strange", version="9.9")


# Starting


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["run", "--sampler", "topk", "-h"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom neurogen.cli import main\n"
        f"try: main({arguments!r}, prog_name='neurogen')\n"
        f"except SystemExit as stop: assert not stop.code\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_samplers_and_plugins_do_not_import_torch() -> None:
    for command in ("samplers", "plugins"):
        code = (
            f"import sys\nfrom neurogen.cli import main\ntry: main([{command!r}])\nexcept SystemExit: pass\n"
            "print([name for name in ('torch', 'numba', 'transformers') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["pluggy", "pydantic", "click", "neurogen.registry"])
@pytest.mark.parametrize("entry", ["-m neurogen", "-c import neurogen.__main__; neurogen.__main__.run()"])
def test_ctrl_c_while_the_command_is_being_imported_leaves_no_traceback(
    tmp_path: Path, module: str, entry: str
) -> None:
    """A module on the way stands for the moment at which the signal comes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, *entry.split(" ", 1), "samplers"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_command_starts_where_an_early_ctrl_c_is_caught() -> None:
    (script,) = entry_points(group="console_scripts", name="neurogen")
    assert script.value == "neurogen.__main__:run"


def test_help_and_samplers_are_quick() -> None:
    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        with process(*arguments) as running:
            running.communicate()
        return time.perf_counter() - started

    assert min(seconds("--help") for _ in range(3)) < 1.5  # 0.2 s on an idle machine; the goal is 0.5
    assert min(seconds("samplers") for _ in range(3)) < 3.0  # 0.3 s; the goal is 1.5


def test_version() -> None:
    assert neurogen_command("--version").stdout == f"neurogen, version {neurogen.__version__}\n"


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
    monkeypatch.setattr("neurogen.registry._default", Registry())
    listing = neurogen_command("plugins", "--json")
    assert listing.stderr == (
        "NEUROGEN_DISABLE_PLUGINS names 'tpok', and no plugin here is called so: check the spelling.\n"
    )
    assert {entry["name"]: entry["status"] for entry in json.loads(listing.stdout)}["topp"] == "disabled"
    assert neurogen_command("samplers").stderr == ""


def test_without_plugins_both_listings_say_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.registry._default", Registry(entry_points=[]))
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


# Output


def test_one_sequence_is_text_on_stdout_and_a_closing_line_on_stderr(run: Invoke) -> None:
    result = run("topk", "--prompt", PROMPT, "--seed", "7", "--top-k", "5")
    whole = lines(run("topk", "--prompt", PROMPT, "--seed", "7", "--top-k", "5", "--json").stdout)[0]
    assert result.exit_code == 0
    assert result.stdout == whole["text"] + "\n"
    assert result.stderr.startswith("topk(k=5, temperature=0.8) seed 7: 6 tokens in ")
    assert result.stderr.endswith(" tokens/s), finished by length\n")
    assert result.stderr.count("\n") == 1


def test_streamed_and_whole_texts_are_the_same(run: Invoke) -> None:
    several = ("topk", "--prompt", PROMPT, "-n", "3", "--seed", "7")
    assert run(*several, "--stream").stdout == run(*several, "--no-stream").stdout
    assert (
        run("topk", "--prompt", PROMPT, "--seed", "7").stdout == run(*several[:3], "--seed", "7", "--no-stream").stdout
    )


def test_json_has_one_object_a_sequence_with_all_fields(run: Invoke) -> None:
    result = run("topp", "--prompt", PROMPT, "-n", "2", "--seed", "7", "--json")
    found = lines(result.stdout)
    assert [list(item) for item in found] == [FIELDS, FIELDS]
    assert sorted((item["index"], item["sample"], item["seed"]) for item in found) == [(0, 0, 7), (0, 1, 8)]
    assert all(item["prompt"] == PROMPT and len(item["token_ids"]) == item["new_tokens"] == 6 for item in found)
    assert found[0]["params"] == {"p": 0.9, "temperature": 0.8}
    assert "topp(p=0.9, temperature=0.8) seed 7: 2 sequences, 12 tokens in " in result.stderr


def test_logprobs_are_there_when_asked_for(run: Invoke) -> None:
    (item,) = lines(run("greedy", "--prompt", PROMPT, "--logprobs", "2", "--json").stdout)
    assert list(item) == [*FIELDS, "logprobs"]
    assert len(item["logprobs"]) == 6
    assert all(len(entry["top"]) == 2 for entry in item["logprobs"])


def test_a_random_seed_is_shown_and_repeats_the_run(run: Invoke) -> None:
    first = run("topk", "--prompt", PROMPT)
    seed = first.stderr.split(" seed ")[1].split(":")[0]
    assert 0 <= int(seed) < 2**31
    assert run("topk", "--prompt", PROMPT, "--seed", seed).stdout == first.stdout
    assert run("topk", "--prompt", PROMPT).stderr.split(" seed ")[1].split(":")[0] != seed


def test_several_texts_come_in_order_with_an_empty_line_between(run: Invoke, prompts_file: Path) -> None:
    arguments = ("topk", "--prompts", str(prompts_file), "-n", "2", "--seed", "7", "--batch-size", "2")
    found = sorted(lines(run(*arguments, "--json").stdout), key=lambda item: (item["index"], item["sample"]))
    assert run(*arguments).stdout == "\n\n".join(item["text"] for item in found) + "\n"
    assert [(item["index"], item["seed"]) for item in found] == [(0, 7), (0, 8), (1, 90), (1, 91), (2, 11), (2, 12)]
    assert [item["params"]["k"] for item in found] == [50, 50, 1, 1, 50, 50]


def test_quiet_leaves_stderr_empty(run: Invoke) -> None:
    assert run("topk", "--prompt", PROMPT, "--quiet").stderr == ""


def test_standard_input_is_one_prompt(run: Invoke) -> None:
    found = lines(run("greedy", "--json", stdin="once upon\na time\n").stdout)
    assert [item["prompt"] for item in found] == ["once upon\na time"]
    assert run("greedy", stdin="").stderr.startswith("Error: The prompt is empty: there was no text on standard input.")
    assert run("greedy", stdin="").exit_code == 1


def test_prompts_may_come_from_standard_input(run: Invoke) -> None:
    result = run("greedy", "--prompts", "-", "--json", stdin=b'"once"\n\xff\n"upon"\n')
    assert [item["prompt"] for item in lines(result.stdout)] == ["once", "upon"]
    assert "standard input, line 2: not UTF-8: byte 0xff at offset 0." in result.stderr
    assert result.exit_code == 1


def test_a_stop_string_ends_the_text(run: Invoke, stories_dir: Path) -> None:
    result = run(
        "greedy", "--model", str(stories_dir), "--prompt", "Once upon a time, there was a little girl", "--stop", "She",
        "--stop", "zebra", "--max-new-tokens", "40",
    )  # fmt: skip
    assert result.stdout == " named Lily. \n"
    assert "finished by stop" in result.stderr


def finished(index: int, sample: int, text: str) -> Sequel:
    return Sequel(index, sample, "", text, [1], "greedy", {}, 0, "length", 1, 1, 1.0, 1.0)


def test_texts_that_finish_out_of_order_wait_and_the_first_in_line_streams(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput([(0, 0), (0, 1), (2, 0)], stream=True, terminal=False)
    output.delta(TextDelta(0, 1, "b"))
    output.delta(TextDelta(2, 0, "c"))
    output.result(finished(2, 0, "cc"))
    assert capsys.readouterr().out == ""
    output.delta(TextDelta(0, 0, "a"))
    assert capsys.readouterr().out == "a"
    output.result(finished(0, 0, "aa"))
    assert capsys.readouterr().out == "a\n\nb"
    output.result(finished(0, 1, "bb"))
    assert capsys.readouterr().out == "b\n\ncc\n"


def test_nobody_waits_for_a_prompt_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput([(0, 0), (0, 1), (0, 2), (1, 0)], stream=True, terminal=False)
    output.delta(TextDelta(0, 0, "a"))
    output.delta(TextDelta(1, 0, "d"))
    output.failure(Failure(0, neurogen.DataError("no")))
    assert capsys.readouterr().out == "a\n\nd"
    output.result(finished(0, 2, "c"))  # its third sample did not fail
    output.result(finished(1, 0, "dd"))
    assert capsys.readouterr().out == "d\n\nc\n"


def test_closing_writes_what_waited_behind_a_sequence_that_was_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput([(0, 0), (1, 0)], stream=False, terminal=False)
    output.result(finished(1, 0, "b"))
    output.close()
    assert capsys.readouterr().out == "b\n"


def test_a_model_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for terminal, shown in ((True, "a\\x1b[2J\\x9b\tb\n\n"), (False, "a\x1b[2J\x9b\tb\n\n")):
        TextOutput([(0, 0)], stream=False, terminal=terminal).result(finished(0, 0, "a\x1b[2J\x9b\tb\n"))
        assert capsys.readouterr().out == shown


# Failures


def test_broken_lines_are_named_and_do_not_lose_the_others(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'"once"\n{"prompt": 1}\n\n"upon' + b" a" * 100 + b'"\n{"prompt": "x", "params": {"p": 1}}\n"a time"\n'
    )
    result = run("topk", "--prompts", str(path), "--json")
    assert [item["prompt"] for item in lines(result.stdout)] == ["once", "a time"]
    errors = result.stderr.splitlines()
    assert errors[0] == f"{path}, line 2: 'prompt' must be a text, got 1."
    assert errors[1] == f"{path}, line 5: topk has no parameter 'p'; it has: k, temperature."
    assert errors[2].startswith(f"{path}, line 4: The prompt has ")
    assert errors[-1] == f"3 of 5 lines of {path} gave no result (2 not a prompt, 1 could not be run); see above."
    assert result.exit_code == 1


def test_texts_behind_a_prompt_that_fails_are_written_in_order(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'"once"\n{json.dumps("upon " * 99)}\n"a time"\n')
    for stream in ("--stream", "--no-stream"):
        result = run("greedy", "--prompts", str(path), stream)
        assert result.exit_code == 1
        assert len(result.stdout.rstrip("\n").split("\n\n")) == 2


@pytest.mark.usefixtures("no_model")
def test_lines_whose_own_seeds_do_not_fit_fail_before_the_model_is_loaded(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "once", "seed": {2**63 - 2}}}\n{{"prompt": "upon", "seed": {2**63 - 1}}}\n')
    result = run("greedy", "--prompts", str(path), "-n", "3", "--seed", str(2**63 - 1))
    assert (result.exit_code, result.stdout) == (1, "")
    first, second, summary = result.stderr.splitlines()
    assert first == (
        f"{path}, line 1: 'seed' is {2**63 - 2}, and the last of 3 samples would have {2**63}; the largest of 64 bits "
        f"is {2**63 - 1}. Give a smaller one."
    )
    assert second.startswith(f"{path}, line 2: 'seed' is {2**63 - 1}, and")
    assert summary == f"2 of 2 lines of {path} gave no result (2 could not be run); see above."


def test_a_line_whose_own_seed_does_not_fit_does_not_lose_the_others(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "once", "seed": {2**63 - 1}}}\n{{"prompt": "upon", "seed": {2**63 - 2}}}\n')
    assert run("greedy", "--prompts", str(path), "-n", "1").exit_code == 0
    for output in ([], ["--output", str(tmp_path / "r.jsonl")]):
        result = run("greedy", "--prompts", str(path), "-n", "2", "--json", *output)
        assert sorted(item["seed"] for item in lines(result.stdout)) == [2**63 - 2, 2**63 - 1]
        assert result.stderr.startswith(f"{path}, line 1: 'seed' is ")
        assert result.exit_code == 1


def test_a_file_of_broken_lines_alone_is_an_error(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("{}\n")
    result = run("topk", "--prompts", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: None of the lines of {path} holds a prompt" in result.stderr


@pytest.mark.parametrize("as_file", [True, False])
def test_a_prompt_that_is_too_long_is_an_error(run: Invoke, tmp_path: Path, as_file: bool) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps("upon " * 99) + "\n")
    source = ("--prompts", str(path)) if as_file else ("--prompt", "upon " * 99)
    result = run("topk", *source)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the context of" in result.stderr
    assert result.stderr.startswith(f"{path}, line 1: " if as_file else "Error: ")


def test_a_model_that_is_not_there_is_an_error_of_one_paragraph(run: Invoke) -> None:
    result = run("topk", "--prompt", PROMPT, "--model", "./absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: There is no model './absent'")
    assert result.stderr.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("run", "--sampler", "topk", "--prompts", "absent.jsonl")
    assert "Traceback" not in neurogen_command(*wrong).stderr
    for arguments in (("--debug", *wrong), (*wrong, "--debug")):
        result = neurogen_command(*arguments)
        assert result.exit_code == 1
        assert "Traceback (most recent call last):" in result.stderr
        assert "Error: The prompts in absent.jsonl cannot be read" in result.stderr
    monkeypatch.setenv("NEUROGEN_DEBUG", "1")
    assert "Traceback" in neurogen_command(*wrong).stderr
    monkeypatch.setenv("NEUROGEN_DEBUG", "0")
    assert "Traceback" not in neurogen_command(*wrong).stderr


# The output file


def test_output_goes_to_the_file_and_stdout_stays_empty(run: Invoke, prompts_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    arguments = ("topk", "--prompts", str(prompts_file), "-n", "2", "--seed", "7")
    result = run(*arguments, "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"; 6 results in {path}" in result.stderr
    written = lines(path.read_text())
    assert [list(item) for item in written] == [[*FIELDS, "run"]] * 6
    plain = {(item["index"], item["sample"]): lasting(item) for item in lines(run(*arguments, "--json").stdout)}
    for item in written:
        settings = item.pop("run")
        assert lasting(item) == plain[item["index"], item["sample"]]
        assert (settings["seed"], settings["n"], settings["plugin"]) == (7, 2, f"neurogen-topk {neurogen.__version__}")


def test_json_and_output_together_write_both(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    result = run("greedy", "--prompt", PROMPT, "--json", "--output", str(path))
    (written,) = lines(path.read_text())
    assert lines(result.stdout) == [{name: value for name, value in written.items() if name != "run"}]


def test_a_repeated_run_does_what_is_missing_with_the_seed_of_the_file(
    run: Invoke, prompts_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    arguments = ("topk", "--prompts", str(prompts_file), "-n", "2", "--output", str(path))
    assert run(*arguments).exit_code == 0
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[4][:50])
    again = run(*arguments)
    assert again.exit_code == 0
    assert f"Going on with {path}: 3 of 6 results are there." in again.stderr
    assert path.read_text().splitlines(keepends=True)[:3] == whole[:3]
    key = str
    assert sorted((lasting(item) for item in lines(path.read_text())), key=key) == sorted(
        (lasting(item) for item in lines("".join(whole))), key=key
    )


def test_when_all_is_done_the_model_is_not_loaded(
    run: Invoke, prompts_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "r.jsonl"
    assert run("topk", "--prompts", str(prompts_file), "--output", str(path)).exit_code == 0
    before = path.read_bytes()
    request.getfixturevalue("no_model")
    result = run("topk", "--prompts", str(prompts_file), "--output", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{path} holds all 3 results already: there is nothing to do." in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (["--seed", "8"], "its seed is 7 and this run's is 8"),
        (["--seed", "7", "--top-k", "3"], "its k is 50 and this run's is 3"),
        (["--seed", "7", "-n", "2"], "its n is 1 and this run's is 2"),
        (["--seed", "7", "--stop", "x"], 'its stop is [] and this run\'s is ["x"]'),
        (["--seed", "7", "--max-new-tokens", "5"], "its max new tokens is 6 and this run's is 5"),
        (["--seed", "7", "--prompt", "other"], 'its prompt is "once upon a time" and this run\'s is "other"'),
    ],
)
def test_a_file_of_another_run_is_not_continued(
    run: Invoke, tmp_path: Path, changes: Sequence[str], difference: str
) -> None:
    path = tmp_path / "r.jsonl"
    assert run("topk", "--prompt", PROMPT, "--seed", "7", "--output", str(path)).exit_code == 0
    before = path.read_bytes()
    result = run("topk", "--prompt", PROMPT, "--output", str(path), *changes)
    assert (result.exit_code, result.stdout) == (1, "")
    assert difference in result.stderr
    assert path.read_bytes() == before


def test_a_run_that_fails_leaves_no_lock_and_can_be_repeated(run: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert run("topk", "--prompt", PROMPT, "--output", str(path), "--model", "./absent").exit_code == 1
    assert [item.name for item in tmp_path.iterdir()] == ["r.jsonl"]
    assert run("topk", "--prompt", PROMPT, "--output", str(path)).exit_code == 0


# Real processes: signals, pipes, terminals


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("lines_of_file", "options", "code", "results"), [(2, (), 0, 2), (3, (), 1, 2), (2, ("--top-k", "1"), 2, 0)]
)
def test_a_stderr_that_cannot_be_written_changes_no_result(
    tiny_model_dir: Path, tmp_path: Path, lines_of_file: int, options: Sequence[str], code: int, results: int
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(('"once"\n', '"upon"\n', "broken\n")[:lines_of_file]))
    fixed = ("run", "-s", "greedy", "--model", str(tiny_model_dir), "--max-new-tokens", "4", "--json")
    arguments = (*fixed, "--prompts", str(path), *options)
    with Path("/dev/full").open("wb") as full, process(*arguments, stderr=full) as running:
        text, _ = running.communicate()
    assert (running.returncode, len(lines(text.decode()))) == (code, results)


@pytest.fixture
def many_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "many.jsonl"
    words = ["once upon a time", "the red ball", "she loved to play", "a little girl"]
    path.write_text("".join(json.dumps(f"{words[i % 4]} {i}") + "\n" for i in range(60)))
    return path


def long_run(model: Path, prompts: Path, output: Path) -> list[str]:
    options = ["--max-new-tokens", "40", "-n", "2", "--seed", "3", "--batch-size", "4", "--top-k", "5"]
    return [
        "run", "-s", "topk", "--model", str(model), "--prompts", str(prompts), "--output", str(output), *options
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_cut_off_anywhere_goes_on_without_a_lost_or_doubled_line(
    tiny_model_dir: Path, many_prompts: Path, tmp_path: Path
) -> None:
    output, reference = tmp_path / "r.jsonl", tmp_path / "reference.jsonl"
    chance = random.Random(5)
    signals = [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
    for number, code in signals:
        size = output.stat().st_size if output.exists() else 0
        with process(*long_run(tiny_model_dir, many_prompts, output)) as running:
            _wait_for_size(running, output, size + chance.randrange(1, 9000))
            running.send_signal(number)
            _, errors = running.communicate()
        assert running.returncode == code, errors.decode()
        assert b"Traceback" not in errors
        if number != signal.SIGKILL:
            assert output.read_bytes().endswith(b"\n")
            assert b"Interrupted: " in errors
            assert not output.with_name("r.jsonl.lock").exists()
    assert neurogen_command(*long_run(tiny_model_dir, many_prompts, output)).exit_code == 0
    assert neurogen_command(*long_run(tiny_model_dir, many_prompts, reference)).exit_code == 0
    found = {(item["index"], item["sample"]): lasting(item) for item in lines(output.read_text())}
    assert len(output.read_text().splitlines()) == len(found) == 120
    assert found == {(item["index"], item["sample"]): lasting(item) for item in lines(reference.read_text())}


def _wait_for_size(running: subprocess.Popen[bytes], path: Path, size: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < size:
        assert running.poll() is None, "the run ended before it was cut off"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_ctrl_c_without_a_file_shows_the_seed(tiny_model_dir: Path, many_prompts: Path) -> None:
    arguments = ["run", "-s", "topk", "--model", str(tiny_model_dir), "--prompts", str(many_prompts), "--seed", "3"]
    with process(*arguments, "--max-new-tokens", "40", "--json") as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate()
    assert running.returncode == 130
    assert all(json.loads(line)["new_tokens"] for line in (first + rest).splitlines())
    assert b"Interrupted after " in errors
    assert b"of 60 sequences. The seed was 3." in errors


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run_quietly(tiny_model_dir: Path, many_prompts: Path) -> None:
    command = f"{sys.executable} -m neurogen run -s greedy --model {tiny_model_dir} --prompts {many_prompts} --quiet"
    done = subprocess.run(
        ["bash", "-c", f"{command} --max-new-tokens 40 | head -c 10; exit ${{PIPESTATUS[0]}}"], capture_output=True
    )
    assert len(done.stdout) == 10
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_error_of_one_line(tiny_model_dir: Path) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        process(
            "run",
            "-s",
            "greedy",
            "--model",
            str(tiny_model_dir),
            "--prompt",
            PROMPT,
            "--max-new-tokens",
            "9",
            stdout=full,
        ) as running,
    ):
        _, errors = running.communicate()
    assert (running.returncode, errors) == (1, b"Error: Standard output cannot be written: No space left on device.\n")


def test_without_prompt_on_a_terminal_says_how_to_give_one() -> None:
    master, terminal = pty.openpty()
    try:
        with process("run", "-s", "topk", stdin=terminal) as running:
            out, errors = running.communicate()
    finally:
        os.close(master)
        os.close(terminal)
    assert (running.returncode, out) == (2, b"")
    assert b"There is no prompt. Give --prompt TEXT, --prompts FILE.jsonl, or text on standard input." in errors


def on_terminal(*arguments: str, stdout: bool, **variables: str) -> tuple[int, str, str]:
    """Run with stderr, and if asked for stdout, on a terminal; what came through a pipe, and what the terminal got."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **variables}
    where = terminal if stdout else subprocess.PIPE
    with process(*arguments, stdin=subprocess.DEVNULL, stdout=where, stderr=terminal, env=environment) as running:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            shown += piece
        piped = running.stdout.read() if running.stdout else b""
    os.close(master)
    return running.returncode, piped.decode(), shown.decode()


@pytest.mark.slow
def test_a_terminal_sees_progress_and_a_pipe_only_results(tiny_model_dir: Path, prompts_file: Path) -> None:
    arguments = (
        "run",
        "-s",
        "topk",
        "--model",
        str(tiny_model_dir),
        "--prompts",
        str(prompts_file),
        "--max-new-tokens",
    )
    code, piped, shown = on_terminal(*arguments, "40", "--json", stdout=False)
    assert code == 0
    assert [item["index"] for item in sorted(lines(piped), key=lambda item: item["index"])] == [0, 1, 2]
    assert "/3 sequences" in shown
    assert f"Loading {tiny_model_dir} ..." in shown
    assert "topk(k=50, temperature=0.8) seed " in shown


@pytest.mark.slow
def test_a_terminal_sees_text_with_headings(tiny_model_dir: Path) -> None:
    arguments = ("run", "-s", "topk", "--model", str(tiny_model_dir), "--prompt", PROMPT, "--max-new-tokens", "20")
    code, _, shown = on_terminal(*arguments, "-n", "2", stdout=True)
    assert code == 0
    assert "prompt 1, sample 1" in shown
    assert "prompt 1, sample 2" in shown


@pytest.mark.slow
def test_compiling_the_kernels_is_said_and_is_no_time_of_decoding(tiny_model_dir: Path, tmp_path: Path) -> None:
    arguments = ("run", "-s", "topk", "--model", str(tiny_model_dir), "--prompt", PROMPT, "--max-new-tokens", "9")
    code, piped, shown = on_terminal(*arguments, "--json", stdout=False, NUMBA_CACHE_DIR=str(tmp_path / "cold"))
    assert code == 0
    assert f"Loading {tiny_model_dir} ..." in shown
    assert "\r\x1b[2KMaking topk ready: its kernels are compiled once, which takes about 10 seconds ..." in shown
    (item,) = lines(piped)
    assert item["seconds"] < 2  # a hundredth of it when idle; compiling takes 3 at least
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cold too")}
    with process(*arguments, env=environment) as running:
        _, errors = running.communicate()
    assert errors.decode().startswith("topk(k=50, temperature=0.8) seed ")


def test_a_terminal_that_obeys_no_codes_gets_none(tiny_model_dir: Path) -> None:
    arguments = ("run", "-s", "greedy", "--model", str(tiny_model_dir), "--prompt", PROMPT, "--max-new-tokens", "4")
    code, _, shown = on_terminal(*arguments, stdout=True, TERM="dumb")
    assert code == 0
    assert "\x1b" not in shown
    assert "greedy() seed " in shown


def test_tables_on_a_terminal_fit_and_respect_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, _, colored = on_terminal("samplers", stdout=True)
    assert code == 0
    assert "\x1b[36m" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    _, _, plain = on_terminal("samplers", stdout=True)
    assert "\x1b[36m" not in plain
    assert all(len(line) <= 120 for line in click.unstyle(plain).splitlines())  # NO_COLOR leaves bold as it is
