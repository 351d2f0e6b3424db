"""Words that shells complete: in the shells themselves, with the script that `neurogen completion` prints."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from neurogen.cli import main
from neurogen.cli.completion import complete_model

BIN = Path(sys.executable).parent
SECONDS = 60.0
READY = "is-ready-now"
START = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
}
SETUP = {
    "bash": "bind 'set bell-style none'; ",
    "zsh": "autoload -U compinit; compinit -u -D; unsetopt prompt_cr prompt_sp zle_bracketed_paste; ",
}


def completed(words: str, incomplete: str) -> list[str]:
    """What is offered for a word, without a shell."""
    found = ShellComplete(main, {}, "neurogen", "_NEUROGEN_COMPLETE").get_completions(words.split(), incomplete)
    return [item.value for item in found]


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, text: str) -> bool:
        """Whether the terminal shows a text from now on, in time."""
        self.shown = ""
        end = time.monotonic() + SECONDS
        while text not in self.shown and time.monotonic() < end:
            if select.select([self._descriptor], [], [], 0.2)[0]:
                self.shown += os.read(self._descriptor, 4096).decode(errors="replace")
        return text in self.shown


@contextmanager
def shell(name: str, folder: Path) -> Iterator[Terminal]:
    """A shell that has taken the script as its users are told to."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "TERM": "dumb",
        "COLUMNS": "200",
        "HOME": str(folder),
        "PS1": "$ ",
    }
    master, terminal = pty.openpty()
    with subprocess.Popen(
        [name, *START[name]],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        cwd=folder,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        shown = Terminal(master)
        try:
            # The word is put together by the shell, so that what is typed does not show it.
            shown.type(f'{SETUP[name]}eval "$(neurogen completion {name})"; echo is-ready"-"now\n')
            assert shown.wait_for(READY), shown.shown
            yield shown
        finally:
            process.kill()
            os.close(master)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_completes_commands_samplers_their_parameters_and_models(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with shell(name, tmp_path) as terminal:
        terminal.type("neurogen repl\t")
        assert terminal.wait_for("replay"), terminal.shown
        terminal.type("\x15neurogen run --sampler gree\t")
        assert terminal.wait_for("greedy"), terminal.shown
        terminal.type("\x15neurogen run --sampler topk --top\t")
        assert terminal.wait_for("--top-k"), terminal.shown
        terminal.type("\x15neurogen run --model trai\t")
        assert terminal.wait_for("trained"), terminal.shown


@pytest.mark.slow
def test_fish_completes_commands_samplers_their_parameters_and_models(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "some.gguf").touch()
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}

    def offered(line: str) -> list[str]:
        program = f"neurogen completion fish | source; complete --do-complete '{line}'"
        done = subprocess.run(
            ["fish", "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return [row.split("\t")[0] for row in done.stdout.splitlines()]

    assert offered("neurogen repl") == ["replay"]
    assert offered("neurogen run --sampler gree") == ["greedy"]
    assert offered("neurogen run --sampler topk --top") == ["--top-k"]
    assert offered("neurogen run --model so") == ["some.gguf"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_says_how_it_is_installed(name: str) -> None:
    result = CliRunner().invoke(main, ["completion", name])
    assert result.exit_code == 0
    assert f"neurogen completion {name}" in result.stdout
    assert "_NEUROGEN_COMPLETE" in result.stdout
    if name == "zsh":
        assert result.stdout.startswith("#compdef neurogen\n")


def test_options_of_the_chosen_sampler_are_offered_and_no_others() -> None:
    assert completed("run --sampler topk", "--top") == ["--top-k"]
    assert completed("run --sampler topp", "--top") == ["--top-p"]
    assert completed("run --sampler topk+topp", "--top") == ["--top-k", "--top-p"]
    assert completed("run", "--top") == []


@pytest.mark.parametrize("spec", ["tok", "topk(k=", "", "no such thing"])
def test_a_sampler_that_is_not_there_offers_the_options_of_the_command(spec: str) -> None:
    found = ShellComplete(main, {}, "neurogen", "_").get_completions(["run", "--sampler", spec], "--max")
    assert [item.value for item in found] == ["--max-new-tokens"]


def test_processors_are_offered() -> None:
    assert completed("run --processor", "repet") == ["repetition-penalty"]


def test_a_broken_configuration_does_not_disturb_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neurogen.toml").write_text("[nonsense")
    monkeypatch.chdir(tmp_path)
    assert completed("", "repl") == ["replay"]


def test_the_sampler_of_the_configuration_offers_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neurogen.toml").write_text('[run]\nsampler = "topk"\n')
    monkeypatch.chdir(tmp_path)
    assert completed("run", "--top") == ["--top-k"]


def test_models_are_known_names_folders_and_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("models/story", "models/trained/checkpoints", "models/.hidden", "empty", "deep/er/est"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("models/story/config.json", "models/.hidden/config.json", "models/a.gguf", "b.gguf", "c.txt"):
        (tmp_path / file).touch()
    (tmp_path / "deep/er/est/config.json").touch()
    monkeypatch.chdir(tmp_path)

    def offered(incomplete: str) -> list[str]:
        context = click.Context(main)
        return [item.value for item in complete_model(context, click.Option(["--model"]), incomplete)]

    assert offered("") == ["starter", "smollm2-135m", "b.gguf", "models/a.gguf", "models/story", "models/trained"]
    assert offered("st") == ["starter"]
    assert offered("models/s") == ["models/story"]
    assert offered("./b") == ["./b.gguf"]
    assert offered("deep/er/") == ["deep/er/est"]
    assert offered("nowhere/") == []
