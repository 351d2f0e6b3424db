"""Defaults by files and variables: which wins, what is refused, and what `neurogen config` says of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import neurogen_command
from hypothesis import given, settings
from hypothesis import strategies as st

from neurogen.cli.configuration import ConfigurationError, Entry, parse_configuration, read_configuration

pytestmark = pytest.mark.usefixtures("registry")

PROMPT = ("--prompt", "once upon a time")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a user of this test alone; no variable of neurogen's is set."""
    for name in list(os.environ):
        if name.startswith("NEUROGEN_") and name != "NEUROGEN_CACHE":
            monkeypatch.delenv(name)
    work, own = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    (own / "neurogen").mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own))
    return own


def in_force(*arguments: str) -> dict[str, tuple[Any, str]]:
    """(command and option) -> value, source."""
    result = neurogen_command(*arguments, "config", "--json")
    assert result.exit_code == 0, result.stderr
    entries = json.loads(result.stdout)["options"]
    return {f"{entry['command']} {entry['option']}": (entry["value"], entry["source"]) for entry in entries}


def user_file(home: Path, text: str) -> None:
    (home / "neurogen" / "config.toml").write_text(text)


def refused(text: str, *arguments: str) -> str:
    """What is said of a configuration; always one paragraph that names the file."""
    Path("neurogen.toml").write_text(text)
    result = neurogen_command(*(arguments or ("samplers",)))
    assert result.exit_code == 2, result.output
    assert result.stderr.strip().count("\n\n") <= 1
    assert "Traceback" not in result.stderr
    *_, message = result.stderr.strip().split("\n\n")
    assert "neurogen.toml" in message
    return message


# Which wins


def test_each_place_yields_to_the_one_before_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "run max-new-tokens"
    assert in_force()[key] == (None, "built in")  # what fits the context, up to 128
    user_file(home, "[run]\nmax-new-tokens = 1\n")
    value, source = in_force()[key]
    assert value == 1
    assert source.endswith("config.toml, key run.max-new-tokens")
    Path("pyproject.toml").write_text("[tool.neurogen.run]\nmax-new-tokens = 2\n")
    assert in_force()[key] == (2, "pyproject.toml, key tool.neurogen.run.max-new-tokens")
    Path("neurogen.toml").write_text("[run]\nmax_new_tokens = 3\n")
    assert in_force()[key] == (3, "neurogen.toml, key run.max_new_tokens")
    Path("other.toml").write_text("[run]\nmax-new-tokens = 4\n")
    assert in_force("--config-file", "other.toml")[key] == (4, "other.toml, key run.max-new-tokens")
    monkeypatch.setenv("NEUROGEN_CONFIG_FILE", "other.toml")
    assert in_force()[key] == (4, "other.toml, key run.max-new-tokens")
    monkeypatch.delenv("NEUROGEN_CONFIG_FILE")
    monkeypatch.setenv("NEUROGEN_RUN_MAX_NEW_TOKENS", "5")
    assert in_force()[key] == ("5", "the environment variable NEUROGEN_RUN_MAX_NEW_TOKENS")


def test_the_values_are_those_that_are_run(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("neurogen.toml").write_text(
        f'[run]\nsampler = "topk"\nmodel = "{tiny_model_dir}"\nmax-new-tokens = 2\nseed = 7\njson = true\n'
        "[run.samplers.topk]\nk = 3\ntemperature = 0.5\n"
    )
    first = json.loads(neurogen_command("run", *PROMPT).stdout)
    assert first["sampler"] == "topk"
    assert first["params"] == {"k": 3, "temperature": 0.5}
    assert first["seed"] == 7
    assert first["new_tokens"] <= 2
    monkeypatch.setenv("NEUROGEN_RUN_TOP_K", "4")
    assert json.loads(neurogen_command("run", *PROMPT).stdout)["params"] == {"k": 4, "temperature": 0.5}
    typed = neurogen_command("run", *PROMPT, "--top-k", "5", "--seed", "8")
    assert json.loads(typed.stdout)["params"] == {"k": 5, "temperature": 0.5}
    assert json.loads(typed.stdout)["seed"] == 8
    spec = neurogen_command("run", *PROMPT, "--sampler", "topk(k=6)")
    assert json.loads(spec.stdout)["params"] == {"k": 6, "temperature": 0.5}
    other = neurogen_command("run", *PROMPT, "--sampler", "greedy")
    assert json.loads(other.stdout)["sampler"] == "greedy"


@pytest.mark.parametrize("key", ["k", "top-k", "top_k"])
def test_a_parameter_is_called_by_its_name_or_by_its_option(key: str) -> None:
    Path("neurogen.toml").write_text(f"[run.samplers.topk]\n{key} = 3\n")
    assert in_force()["run --sampler topk top-k"][0] == 3


def test_parameters_of_a_chain_have_their_section() -> None:
    Path("neurogen.toml").write_text('[run]\nsampler = "topk+topp"\n[run.samplers."topk+topp"]\nk = 9\n')
    assert in_force()["run top-k"] == (9, "neurogen.toml, key run.samplers.'topk+topp'.k")


def test_options_of_commands_below_others_and_of_all_samplers_at_once() -> None:
    Path("neurogen.toml").write_text("[tokenizer.train]\nvocab-size = 400\n[bench]\ntop-k = 5\nvocab = [10, 20]\n")
    values = in_force()
    assert values["tokenizer train vocab-size"][0] == 400
    assert values["bench top-k"][0] == 5
    assert values["bench vocab"][0] == [10, 20]


def test_a_default_that_does_not_concern_what_is_run_is_no_obstacle(tmp_path: Path) -> None:
    """A file gives defaults for all runs; what is typed is refused where it has no effect."""
    Path("neurogen.toml").write_text("[bench]\ntop-k = 5\n[diagnose]\ncontext = 16\n")
    with_default = neurogen_command("bench", "greedy", "--plot", "wrong.pdf")
    assert "--plot draws a PNG" in with_default.stderr
    assert "belongs to topk" in neurogen_command("bench", "greedy", "--top-k", "5").stderr
    assert "--context belongs to --model" not in neurogen_command("diagnose", "--logits", "none").stderr
    assert "--context belongs to --model" in neurogen_command("diagnose", "--logits", "none", "--context", "9").stderr


def test_flags_lists_and_pairs_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("neurogen.toml").write_text('[run]\nchat = false\nstop = ["a b", "c"]\nquiet = true\n')
    values = in_force()
    assert values["run chat"][0] is False
    assert values["run stop"][0] == ["a b", "c"]
    assert values["run quiet"][0] is True
    monkeypatch.setenv("NEUROGEN_RUN_CHAT", "true")
    assert in_force()["run chat"][0] == "true"


def test_help_shows_the_default_in_force() -> None:
    Path("neurogen.toml").write_text("[run]\nmax-new-tokens = 77\n")
    shown = " ".join(neurogen_command("run", "--help").stdout.split())
    assert "default: 77" in shown
    assert "default: (a random one" in shown  # a default in words, of which the file says nothing


def test_old_variables_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROGEN_DISABLE_PLUGINS", "topp")
    monkeypatch.setenv("NEUROGEN_ONLY_PLUGINS", "topk,topp")
    monkeypatch.setenv("NEUROGEN_DEBUG", "0")
    monkeypatch.setattr("neurogen.registry.registry._default", None)
    states = {plugin["name"]: plugin["error"] for plugin in json.loads(neurogen_command("samplers", "--json").stdout)}
    assert states["topk"] is None
    assert states["topp"] == "left out by NEUROGEN_DISABLE_PLUGINS"
    assert states["greedy"] == "not among NEUROGEN_ONLY_PLUGINS"


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[runn]", ["key runn", "Did you mean run?"]),
        ("[run]\nmax-new-token = 1", ["key run.max-new-token", "Did you mean max-new-tokens?"]),
        ('[run]\nmax-new-tokens = "5"', ["key run.max-new-tokens", "a whole number", "'5'"]),
        ("[run]\nmax-new-tokens = 1.5", ["a whole number", "1.5"]),
        ("[run]\nmax-new-tokens = true", ["a whole number", "True"]),
        ("[run]\nquiet = 1", ["true or false"]),
        ('[run]\nstop = "x"', ["must be a list", "'x'"]),
        ("[run]\nstop = [1]", ["must be a list"]),
        ("[run]\nmodel = 1979-05-27", ["a text", "datetime.date"]),
        ("[run]\nmodel = {a = 1}", ["a text"]),
        ("[run]\ndebug = true", ["no option --debug"]),
        ("run = 3", ["key run", "must be a table"]),
        ("[run.samplers]\ntopk = 3", ["key run.samplers.topk", "must be a table"]),
        ("[run.samplers.topq]\nk = 1", ["no sampler 'topq' is installed", "Did you mean"]),
        ("[train.samplers.topk]\nk = 1", ["no option --samplers"]),
        ("[plugins]\nallow = 'topk'", ["key plugins.allow", "must be a list"]),
        ("[plugins]\nalow = ['topk']", ["key plugins.alow", "Did you mean allow?"]),
        ("plugins = 1", ["key plugins", "must be a table"]),
        ("[tokenizer.trian]\nvocab-size = 3", ["key tokenizer.trian", "Did you mean train?"]),
        ("[run", ["no TOML"]),
        ("a = 1\na = 2", ["no TOML"]),
        (f"a = {'[' * 5000}", ["no TOML"]),
        (f"a = {'9' * 5000}", ["no TOML"]),
    ],
)
def test_what_means_nothing_is_named_with_file_key_and_what_is_near(text: str, said: list[str]) -> None:
    message = refused(text)
    for part in said:
        assert part in message


def test_a_value_outside_its_domain_names_the_file_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ("run", "--sampler", "topk", *PROMPT)
    assert "It comes from neurogen.toml, key run.max-new-tokens." in refused("[run]\nmax-new-tokens = 0", *run)
    assert "key run.device." in refused('[run]\ndevice = "gpu"', *run)
    assert "key run.samplers.topk.k." in refused("[run.samplers.topk]\nk = -1", *run)
    assert "topk has no such parameter. Did you mean k?" in refused("[run.samplers.topk]\nkk = 1", *run)
    assert "a whole number" in refused("[run.samplers.topk]\nk = 1.5", *run)
    Path("neurogen.toml").unlink()
    monkeypatch.setenv("NEUROGEN_RUN_TOP_K", "-3")
    result = neurogen_command(*run)
    assert result.exit_code == 2
    assert "It comes from the environment variable NEUROGEN_RUN_TOP_K." in result.stderr


def test_what_is_typed_wrongly_names_no_file() -> None:
    Path("neurogen.toml").write_text("[run]\nmax-new-tokens = 5")
    result = neurogen_command("run", "--sampler", "topk", *PROMPT, "--max-new-tokens", "0")
    assert result.exit_code == 2
    assert "It comes from" not in result.stderr


@pytest.mark.parametrize("name", ["NEUROGEN_RUN_TOPK", "NEUROGEN_TRAIN_LERNING_RATE", "NEUROGEN_TOKENIZER_VOCAB_SIZE"])
def test_a_variable_of_no_option_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    result = neurogen_command("samplers")
    assert result.exit_code == 2
    assert f"The environment variable {name} belongs to no option" in result.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NEUROGEN_DISABLE_PLUGIN", "NEUROGEN_DISABLE_PLUGINS"),
        ("NEUROGEN_RNU_SAMPLER", "NEUROGEN_RUN_..."),
        ("NEUROGEN_TRIAN_SEED", "NEUROGEN_TRAIN_..."),
        ("NEUROGEN_CONFIGFILE", "NEUROGEN_CONFIG_FILE"),
    ],
)
def test_a_variable_that_is_nearly_one_is_refused(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("NEUROGEN_TEST_VLLM", "x")
    outcome = neurogen_command("samplers")
    assert outcome.exit_code == 2
    assert f"The environment variable {name} has no effect. Did you mean {meant}?" in outcome.stderr


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEUROGEN_TEST_VLLM", "NEUROGEN_EXHAUSTIVE", "NEUROGEN_CUDA_PIECES", "NEUROGEN_HOME"):
        monkeypatch.setenv(name, "x")
    assert neurogen_command("samplers").exit_code == 0


def test_a_variable_of_another_sampler_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROGEN_RUN_TOP_P", "0.5")
    assert in_force()["run max-new-tokens"][1] == "built in"


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    missing = neurogen_command("--config-file", "missing.toml", "samplers")
    assert missing.exit_code == 2
    assert "missing.toml does not exist" in missing.stderr
    os.mkfifo("neurogen.toml")
    result = neurogen_command("samplers")
    assert result.exit_code == 2
    assert "no regular file" in result.stderr
    Path("neurogen.toml").unlink()
    Path("neurogen.toml").write_bytes(b"# \xff\n")
    assert "no TOML file" in neurogen_command("samplers").stderr
    Path("neurogen.toml").write_bytes(b"#" * 1_000_001)
    assert "more than 1,000,000 bytes" in neurogen_command("samplers").stderr


def test_a_pyproject_of_others_is_none_of_our_business() -> None:
    Path("pyproject.toml").write_text("[tool.other]\nrun = 1\n[project]\nname = 'x'\n")
    assert neurogen_command("samplers").exit_code == 0
    Path("pyproject.toml").write_text("this is no TOML")
    assert neurogen_command("samplers").exit_code == 0
    Path("pyproject.toml").write_text("[tool.neurogen.runn]\n")
    result = neurogen_command("samplers")
    assert result.exit_code == 2
    assert "pyproject.toml, key tool.neurogen.runn" in result.stderr


# What neurogen config says


def test_config_shows_what_is_set_and_all_on_demand() -> None:
    Path("neurogen.toml").write_text("[run]\nseed = 4\n")
    short = neurogen_command("config")
    assert short.exit_code == 0
    assert [line.split()[:3] for line in short.stdout.splitlines()[1:]] == [["run", "seed", "4"]]
    assert "Read: neurogen.toml." in short.stderr
    whole = neurogen_command("config", "--all", "--quiet")
    assert len(whole.stdout.splitlines()) > 100
    assert whole.stderr == ""
    assert all(
        line.startswith(("COMMAND", "train")) for line in neurogen_command("config", "train").stdout.splitlines()
    )
    assert neurogen_command("config", "trian").exit_code == 2


def test_config_as_json_names_every_file_that_is_looked_for(home: Path) -> None:
    user_file(home, '[plugins]\nallow = ["topk"]\n')
    shown = json.loads(neurogen_command("config", "--json").stdout)
    assert [Path(file["path"]).name for file in shown["files"]] == ["neurogen.toml", "pyproject.toml", "config.toml"]
    assert [file["read"] for file in shown["files"]] == [False, False, True]
    assert shown["files"][2]["plugins"] == {"allow": ["topk"], "disable": []}


# Whatever is in the file


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_a_paragraph(content: bytes) -> None:
    _read_or_refused(content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["run", "plugins", "allow", "disable", "tool", "neurogen", "samplers", "topk", "k"]) | st.text(
    max_size=6
)


@settings(max_examples=500, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=4), NAMES, VALUES)
def test_any_toml_is_read_or_refused_in_a_paragraph(table: list[str], key: str, value: Any) -> None:
    heading = ".".join(json.dumps(name) for name in table)
    _read_or_refused(f"[{heading}]\n{json.dumps(key)} = {json.dumps(value)}\n".encode())


def _read_or_refused(content: bytes) -> None:
    for within in ((), ("tool", "neurogen")):
        message = "x.toml"
        try:
            assert isinstance(parse_configuration(content, Path("x.toml"), within), Entry)
        except ConfigurationError as error:
            message = str(error)
        assert message.startswith("x.toml")
        assert "\n" not in message


def test_nothing_to_read_is_no_error() -> None:
    assert read_configuration() == []


def test_a_sampler_that_is_an_argument_has_its_section_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("neurogen.toml").write_text("[conformance.samplers.topk]\nk = 3\n")
    assert in_force()["conformance topk top-k"] == (3, "neurogen.toml, key conformance.samplers.topk.k")
    monkeypatch.setenv("NEUROGEN_CONFORMANCE_TOP_K", "-7")
    result = neurogen_command("conformance", "topk", "--quick")
    assert result.exit_code == 2
    assert "NEUROGEN_CONFORMANCE_TOP_K" in result.stderr
