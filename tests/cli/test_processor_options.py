"""Processors on the command line: options, order, what is refused, and what a file of results makes of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import neurogen_command
from click.testing import Result

import neurogen
from neurogen.processors import FIRST_PARTY
from neurogen.registry.registry import PROCESSORS

PROMPT = "once upon a time"
Invoke = Callable[..., Result]

needs_llguidance = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None,
    reason="llguidance is not installed (pip install 'neurogen[grammar]')",
)


@pytest.fixture
def run(tiny_model_dir: Path) -> Invoke:
    """`neurogen run` with the tiny model, greedily, and few tokens."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        fixed = ("run", "--model", str(tiny_model_dir), "--sampler", "greedy", "--max-new-tokens", "8", "--seed", "3")
        return neurogen_command(*fixed, *arguments, stdin=stdin)

    return run


def shown(result: Result) -> list[str] | None:
    """The processors of the only result."""
    assert result.exit_code == 0, result.stderr
    found: list[str] | None = json.loads(result.stdout).get("processors")
    return found


def test_processors_lists_every_one_with_its_parameters() -> None:
    entries = {entry["name"]: entry for entry in json.loads(neurogen_command("processors", "--json").stdout)}
    assert {cls.name for cls in FIRST_PARTY} <= set(entries)
    (penalty, last_n, prompt) = entries["repetition-penalty"]["parameters"]
    assert (penalty["option"], penalty["domain"], penalty["default"]) == (
        "--repetition-penalty",
        "a finite number > 0",
        1.2,
    )
    assert (last_n["option"], prompt["option"]) == ("--repetition-last-n", "--repetition-prompt")
    rows = [line.split() for line in neurogen_command("processors").stdout.splitlines()]
    assert ["PROCESSOR", "DISTRIBUTION", "DESCRIPTION"] in rows
    assert ["dry", "base", "--dry-base", "a", "finite", "number", ">=", "1", "1.75"] in [row[:9] for row in rows]


def test_processors_that_fail_are_listed_and_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_module", PROCESSORS.group)
    monkeypatch.setattr("neurogen.registry.registry._default", neurogen.Registry([broken]))
    assert "failed: The processor plugin 'broken'" in neurogen_command("processors").stdout
    monkeypatch.setattr("neurogen.registry.registry._default", neurogen.Registry([]))
    result = neurogen_command("processors")
    assert (result.stdout, "No processor plugin is installed" in result.stderr) == ("", True)


def test_every_parameter_of_the_first_party_has_an_option_that_nothing_else_has() -> None:
    text = neurogen_command("run", "--sampler", "topk", "--help").stdout
    for cls in FIRST_PARTY:
        for field in cls.Params.model_fields.values():
            option = (field.json_schema_extra or {}).get("option")  # type: ignore[union-attr]
            assert (option is None) == ("SHA-256" in (field.description or ""))
            assert option is None or text.count(f"\n  {option} ") == 1, option
    section = text.index("Processors, which change logits before the sampler")
    assert text.index("--batch-size") < section < text.index("--processor SPEC")
    assert text.count("--repetition-penalty") == 1


def test_processors_work_in_one_order_whatever_that_of_the_options(run: Invoke) -> None:
    options = [
        *("--min-new-tokens", "2"), *("--ban", "the"), *("--allow", "'once', 'upon', 5, 6"),
        *("--no-repeat-ngram", "3"),
        *("--processor", "presence-penalty(penalty=2)+dry"), *("--logit-bias", "5:-1"), *("--dry-multiplier", "0.5"),
        *("--processor", "repetition-penalty"), *("--frequency-penalty", "0.1"), *("--presence-penalty", "0.2"),
        *("--repetition-penalty", "1.1", "--no-repetition-prompt", "--dry-base", "2"),
    ]  # fmt: skip
    assert shown(run("--prompt", PROMPT, "--json", *options)) == [
        "repetition-penalty(penalty=1.1, last_n=-1, prompt=false)",
        "presence-penalty(penalty=0.2)",
        "frequency-penalty(penalty=0.1)",
        "dry(multiplier=0.5, base=2.0)",
        'logit-bias(bias="5:-1")',
        "presence-penalty(penalty=2.0)",
        "dry",
        "repetition-penalty(penalty=1.2, last_n=-1, prompt=true)",
        "no-repeat-ngram(size=3)",
        "allowed-tokens(tokens=\"'once', 'upon', 5, 6\")",
        'banned-texts(texts="\\"the\\"")',
        "min-new-tokens(tokens=2)",
    ]


def test_without_options_a_result_has_no_processors(run: Invoke) -> None:
    assert shown(run("--prompt", PROMPT, "--json")) is None


def test_a_spec_and_a_direct_option_give_the_same(run: Invoke) -> None:
    plain = run("--prompt", PROMPT).stdout
    direct = run("--prompt", PROMPT, "--allow", "300, 301").stdout
    assert direct == run("--prompt", PROMPT, "--processor", 'allowed-tokens(tokens="300, 301")').stdout != plain


def test_bans_are_joined_and_may_hold_any_character(run: Invoke) -> None:
    arguments = ("--ban", 'say "it"\n', "--ban", "a,b", "--ban-texts", "['it', ' x']", "--prompt", PROMPT, "--json")
    (text,) = shown(run(*arguments)) or []
    words = [automaton.word.decode() for automaton in neurogen.load_processors(text)[0]._automata]  # type: ignore[attr-defined]
    assert words == ["it", " x", 'say "it"\n', "a,b"]


@needs_llguidance
def test_a_regular_expression_on_the_command_line(run: Invoke) -> None:
    assert run("--prompt", PROMPT, "--regex", "(cat|dog)s", "-q").stdout in ("cats\n", "dogs\n")


@needs_llguidance
def test_files_of_schema_and_grammar_on_the_command_line(run: Invoke, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": [17, "x"]}')
    grammar.write_text('start: "a" b\nb: "b"+ "!"\n')
    assert json.loads(run("--prompt", PROMPT, "--json-schema", str(schema), "-q").stdout) in (17, "x")
    text = run("--prompt", PROMPT, "--grammar", str(grammar), "-q").stdout
    assert set(text.strip()) <= set("ab!")


@needs_llguidance
def test_a_text_that_is_cut_off_is_told_on_stderr_even_when_quiet(run: Invoke, tmp_path: Path) -> None:
    regex = ("--regex", "[a-z]{200}")
    result = run("--prompt", PROMPT, *regex, "-q")
    assert result.exit_code == 0
    assert result.stderr == (
        "The text is incomplete: max_new_tokens was reached before the regular expression was satisfied. "
        "Allow more new tokens.\n"
    )
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('"once"\n"upon"\n')
    several = run("--prompts", str(lines), *regex, "-q", "--json")
    assert "prompt 2, sample 1: The text is incomplete" in several.stderr
    assert all(json.loads(line)["finish_reason"] == "length" for line in several.stdout.splitlines())
    assert all(json.loads(line)["notices"] for line in several.stdout.splitlines())


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--repetition-penalty", "0"], 2, "Invalid value for '--repetition-penalty': repetition-penalty: penalty"),
        (["--repetition-penalty", "x"], 2, "penalty must be a finite number > 0, got 'x'"),
        (["--repetition-last-n", "5"], 2, "--repetition-last-n says how repetition-penalty works: it needs --"),
        (["--dry-base", "2", "--dry-last-n", "9"], 2, "it needs --dry-multiplier, which asks for it"),
        (["--no-allow-end"], 2, "--allow-end says how allowed-tokens works: it needs --allow, which"),
        (["--no-repeat-ngram", "0"], 2, "size must be an integer >= 1, got 0"),
        (["--logit-bias", "cat:1"], 2, "Invalid value for '--logit-bias': logit-bias: bias cannot be read"),
        (["--logit-bias", ""], 2, "bias is empty"),
        (["--ban", ""], 2, "Invalid value for '--ban': it must not be empty"),
        (["--ban", "x", "--ban-texts", "@list"], 2, "Give either --ban TEXT or --ban-texts @FILE"),
        (["--ban-texts", "5"], 2, "banned-texts: texts must be in quotes, got 5. Tokens are banned by banned-tokens"),
        (["--allow", "@/no/such"], 2, "the file '/no/such' that tokens names cannot be read"),
        (["--processor", ""], 2, "Invalid value for '--processor': it must not be empty"),
        (["--processor", "no-repeat"], 1, "There is no processor 'no-repeat'. Installed: allowed-tokens,"),
        (["--processor", "no-repeat-ngram(size=)"], 1, "cannot be read"),
        (["--processor", "no-repeat-ngram(size=0)"], 1, "no-repeat-ngram: size must be an integer >= 1, got 0"),
        (["--repetition-penaltyy", "2"], 2, "Did you mean --repetition-penalty?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    run: Invoke, arguments: list[str], code: int, message: str
) -> None:
    result = run("--prompt", PROMPT, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@needs_llguidance
@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "(a"], "Invalid value for '--regex': grammar: regex cannot be used"),
        (["--json-schema", "/no/such"], "Invalid value for '--json-schema': grammar: the file '/no/such'"),
        (["--json-schema", '{"type": "objct"}'], 'json_schema cannot be used: there is no type "objct"'),
        (["--grammar", "start: foo"], "Invalid value for '--grammar': grammar: grammar cannot be used"),
        (["--regex", "a", "--grammar", "start: /a/"], "regex, grammar is given. Give one of"),
        (["--regex", ""], "nothing is given"),
    ],
)
def test_what_is_no_grammar_is_refused_before_the_model_is_loaded(
    run: Invoke, arguments: list[str], message: str
) -> None:
    result = run("--prompt", PROMPT, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.usefixtures("no_model")
def test_a_missing_library_is_one_paragraph_with_the_command(run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = run("--prompt", PROMPT, "--regex", "a")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "Install it: pip install 'neurogen[grammar]'." in result.stderr


@pytest.mark.usefixtures("no_model")
def test_an_allow_list_of_plugins_holds_for_direct_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neurogen", "--only-plugins", "greedy", "run", "-s", "greedy", "--prompt", "x",
         "--repetition-penalty", "1.2"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "'repetition-penalty' of neurogen" in done.stderr
    assert "is disabled: not among --only-plugins" in done.stderr


def test_an_id_beyond_the_vocabulary_is_an_error_of_one_paragraph(run: Invoke) -> None:
    result = run("--prompt", PROMPT, "--ban-tokens", "5000")
    assert result.exit_code == 1
    assert "banned-tokens: tokens holds the id 5000; ids of this model are 0 to 319" in result.stderr


def test_results_of_other_processors_are_another_run(run: Invoke, tmp_path: Path) -> None:
    output = str(tmp_path / "results.jsonl")
    bans = tmp_path / "bans.txt"
    bans.write_text("5\n6\n")
    arguments = ("--prompt", PROMPT, "--output", output, "--repetition-penalty", "1.3", "--ban-tokens", f"@{bans}")
    assert run(*arguments).exit_code == 0
    again = run(*arguments)
    assert (again.exit_code, "holds all 1 result already" in again.stderr) == (0, True)
    for others in (arguments[:-2], (*arguments, "--min-new-tokens", "2"), arguments[:4]):
        result = run(*others)
        assert result.exit_code == 1
        assert "line 1 does not belong to this run, its processors is" in result.stderr
    bans.write_text("5\n7\n")
    assert "does not belong to this run, its processors is" in run(*arguments).stderr


def test_results_without_processors_are_not_continued_with_some(run: Invoke, tmp_path: Path) -> None:
    output = str(tmp_path / "results.jsonl")
    assert run("--prompt", PROMPT, "--output", output).exit_code == 0
    assert "its processors is null" in run("--prompt", PROMPT, "--output", output, "--ban", "x").stderr
    assert "already" in run("--prompt", PROMPT, "--output", output).stderr


def test_a_line_of_prompts_may_have_its_own(run: Invoke, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    lines = [PROMPT, {"prompt": PROMPT, "processors": "no-repeat-ngram(size=1)"}, {"prompt": PROMPT, "processors": ""}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("--prompts", str(prompts), "--output", str(output), "--min-new-tokens", "1")
    assert run(*arguments).exit_code == 0
    found = {line["index"]: line.get("processors") for line in map(json.loads, output.read_text().splitlines())}
    assert found == {0: ["min-new-tokens(tokens=1)"], 1: ["no-repeat-ngram(size=1)"], 2: None}
    assert "holds all 3 results already" in run(*arguments).stderr
    prompts.write_text(prompts.read_text().replace("size=1", "size=2"))
    assert "line 2 does not belong to this run, its processors is" in run(*arguments).stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "'processors' must be a text such as \"no-repeat-ngram(size=3)\", got 5"),
        ("no-such", "'processors': There is no processor 'no-such'. Installed:"),
        ("dry(base=0)", "'processors': dry: base must be a finite number >= 1, got 0"),
        ("dry(", "'processors': 'dry(' cannot be read"),
    ],
)
def test_a_line_whose_processors_cannot_be_is_named_and_loses_no_other(
    run: Invoke, tmp_path: Path, value: object, message: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "x", "processors": value}) + "\n" + json.dumps(PROMPT) + "\n")
    result = run("--prompts", str(prompts), "-q")
    assert result.exit_code == 1
    assert f"prompts.jsonl, line 1: {message}" in result.stderr
    assert result.stdout.strip()


@pytest.mark.slow
def test_a_recorded_run_with_processors_is_replayed(run: Invoke, tmp_path: Path) -> None:
    record, prompts = tmp_path / "run.rec", tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT, "processors": "no-repeat-ngram(size=1)"}) + f'\n"{PROMPT}"\n')
    assert (
        run("--prompts", str(prompts), "--record", str(record), "--ban", "upon", "--dry-multiplier", "1").exit_code == 0
    )
    replay = neurogen_command("replay", str(record))
    assert replay.exit_code == 0, replay.output
