"""What holds for every command, whichever there are: they are found, not listed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import click
import pytest
from cli_helpers import CommandPath, commands
from click.testing import CliRunner, Result

from neurogen.cli import main

ANSI = re.compile(r"\x1b\[")
TIMES_CLICK = 20
"""How much longer a help may take than importing click; 5 to 7 here when nothing else runs."""

WITHOUT_JSON = {
    "chat": "it is a conversation; what was said is written by /save",
    "completion": "it prints a script",
    "new-sampler": "it writes a package, and a person goes on with that",
}
WITHOUT_QUIET = {
    "completion": "it prints a script and says nothing else",
    "new-sampler": "it says in a line or two what it has written, and nothing else",
    "samplers": "it prints a list and says nothing else",
    "processors": "it prints a list and says nothing else",
    "plugins": "it prints a list; a misspelt name in a variable is told on stderr and concerns the list",
    "conformance": "it prints what it has found and says nothing else",
}
WITHOUT_EITHER = {"tokenizer": "a group of commands", "": "the program itself"}
EVERY = dict(commands())


def each(*, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    paths = [path for path in EVERY if " ".join(path) not in but]
    return pytest.mark.parametrize("path", paths, ids=[" ".join(path) or "neurogen" for path in paths])


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, color=True)


def options(path: CommandPath) -> list[click.Option]:
    command = EVERY[path]
    found = command.get_params(click.Context(command))
    return [param for param in found if isinstance(param, click.Option) and not param.hidden]


def spellings(path: CommandPath) -> set[str]:
    return {spelling for option in options(path) for spelling in option.opts}


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@each()
def test_the_help_describes_every_option(path: CommandPath) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    shown = result.stdout
    for option in options(path):
        assert option.help, f"{option.opts} has no help"
        assert re.search(rf"(?<![\w-]){re.escape(max(option.opts, key=len))}(?![\w-])", shown), option.opts
        assert option.help.split()[0] in shown
    assert (EVERY[path].help or "").split()[0] in shown


@each()
def test_an_unknown_option_is_wrong_usage_and_no_traceback(path: CommandPath) -> None:
    result = invoke(*path, "--no-such-option-at-all")
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    *_, last = result.stderr.strip().split("\n\n")
    assert "Error: " in last
    assert "\n" not in last[last.index("Error: ") :]


@each(but=tuple(WITHOUT_JSON | WITHOUT_EITHER))
def test_the_result_can_be_had_as_json(path: CommandPath) -> None:
    assert "--json" in spellings(path)


@each(but=tuple(WITHOUT_QUIET | WITHOUT_EITHER))
def test_the_command_can_be_quiet(path: CommandPath) -> None:
    assert {"--quiet", "-q"} <= spellings(path)


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_the_exceptions_are_ones(option: str) -> None:
    exceptions = WITHOUT_EITHER | (WITHOUT_JSON if option == "--json" else WITHOUT_QUIET)
    for path in EVERY:
        if " ".join(path) in exceptions:
            assert option not in spellings(path), f"{' '.join(path)} has {option}: take it off the list"


@pytest.mark.parametrize("arguments", [["samplers"], ["processors"], ["plugins"], ["config", "--all"]])
def test_tables_have_no_color_in_a_pipe(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    command = [sys.executable, "-m", "neurogen", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout
    assert not ANSI.search(done.stdout + done.stderr)


def seconds_of(*arguments: str) -> float:
    """The shortest of several times, which is least disturbed by what else runs."""
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--sampler", "topk", "--help"], ["train", "--help"]])
def test_help_is_there_at_once(arguments: list[str]) -> None:
    assert seconds_of("-m", "neurogen", *arguments) < TIMES_CLICK * seconds_of("-c", "import click")


# Exit codes


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `neurogen samplers` fail in a way that nobody has foreseen."""

    def callback(**_: object) -> None:
        raise error

    monkeypatch.setattr(EVERY["samplers",], "callback", callback)


def test_0_is_done_1_an_error_2_wrong_usage() -> None:
    assert invoke("samplers").exit_code == 0
    assert invoke("run", "--sampler", "greedy", "--model", "./nothing", "--prompt", "a").exit_code == 1
    assert invoke("run", "--sampler", "greedy", "--max-new-tokens", "none").exit_code == 2
    assert invoke("no-such-command").exit_code == 2
    Path("neurogen.toml").write_text("[no-such-section]")
    assert invoke("samplers").exit_code == 2


@pytest.mark.parametrize("error", [ZeroDivisionError("division by\nzero"), KeyError("x"), AssertionError()])
def test_an_unforeseen_error_is_a_paragraph_that_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(error, monkeypatch)
    result = invoke("samplers")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"Error: {type(error).__name__}")
    assert "This is a bug of neurogen" in result.stderr
    assert "--debug" in result.stderr


@pytest.mark.parametrize("arguments", [["samplers", "--debug"], ["--debug", "samplers"]])
@pytest.mark.parametrize(("error", "code"), [(RuntimeError("odd"), 1), (KeyboardInterrupt(), 130)])
def test_debug_shows_the_traceback(
    error: BaseException, code: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(error, monkeypatch)
    result = invoke(*arguments)
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr
    assert traceback.format_exception_only(error)[0].strip() in result.stderr


def test_ctrl_c_is_130_and_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    result = invoke("samplers")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_their_exit_code(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """As a shell sees it: SIGTERM may end the process itself, which a shell calls 143."""
    pipe = tmp_path / "prompts"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "neurogen", "run", "--sampler", "greedy", "--prompts", str(pipe)]
    with (
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
        pipe.open("w"),
    ):  # opened by both: the command is reading
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    ended = process.returncode
    assert (128 - ended if ended < 0 else ended) == code
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["config", "--all"], ["samplers"], ["processors", "--json"]])
def test_a_reader_that_goes_away_is_141_without_a_word(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "neurogen", *arguments, *(["--quiet"] if arguments[0] == "config" else [])]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""
