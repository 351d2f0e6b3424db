"""What docs/processors.md shows is so: its Python runs, its commands name options and processors that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import neurogen
from neurogen.cli import main
from neurogen.processors import FIRST_PARTY
from neurogen.processors.listing import parse_biases, parse_list

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "processors.md").read_text()
COMMANDS = re.findall(r"^(?:    )?neurogen (run .*)$", PAGE, re.MULTILINE)


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Runner(" in block)
    check = "\nassert result.text and 'Lily' not in result.text and len(result.processors) == 2\n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", example + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_first_party_processor_is_in_the_table_of_what_counts_or_explained() -> None:
    assert all(f"`{cls.name}`" in PAGE.split("## What counts")[0].split("<!-- end -->")[1] for cls in FIRST_PARTY)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where the model is loaded, or a file that a reader would have is missing."""

    class ReadyToRun(neurogen.NeurogenError):
        pass

    def execute(*arguments: object) -> None:
        raise ReadyToRun("the command is right")

    if re.search("--(regex|grammar|json-schema)", command):
        pytest.importorskip("llguidance", reason="llguidance is not installed (pip install 'neurogen[grammar]')")
    monkeypatch.setattr("neurogen.cli.run.run_session", execute)
    result = CliRunner().invoke(main, shlex.split(command))
    files = re.findall(r"[\w]+\.(?:json|lark)", command)
    expected = f"the file '{files[0]}'" if files else "the command is right"
    assert expected in result.stderr


def test_the_page_shows_commands() -> None:
    assert len(COMMANDS) >= 6


def test_lists_are_read() -> None:
    (line,) = re.findall(r"^ *(--ban-tokens .*) --allow @tokens.txt$", PAGE, re.MULTILINE)
    words = shlex.split(line)
    given = dict(zip(words[::2], words[1::2], strict=True))
    registry = neurogen.Registry(disabled=())
    bans = registry.load_processor("banned-tokens", tokens=given["--ban-tokens"])
    assert parse_list(bans, "tokens") == [5, " cat", "dog"]
    bias = registry.load_processor("logit-bias", bias=given["--logit-bias"])
    assert parse_biases(bias, "bias") == [(1234, -5.0), (" cat", 2.5), (42, -float("inf"))]
