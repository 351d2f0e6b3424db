"""Running the command in this process or in one of its own, with what its tests share."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from neurogen import Registry, Sampler, hookimpl
from neurogen.cli import main
from neurogen.registry.registry import ENTRY_POINT_GROUP

PROMPT = "once upon a time"
FIELDS = [
    "index", "sample", "prompt", "text", "token_ids", "sampler", "params", "seed", "finish_reason", "prompt_tokens",
    "new_tokens", "seconds", "tokens_per_second",
]  # fmt: skip
Invoke = Callable[..., Result]
CommandPath = tuple[str, ...]


def neurogen_command(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run the command in this process; an exception that is no exit is the test's."""
    result = CliRunner().invoke(main, arguments, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def commands(
    command: click.Command = main, path: CommandPath = (), parent: click.Context | None = None
) -> Iterator[tuple[CommandPath, click.Command]]:
    """Every command, also those below others."""
    context = click.Context(command, parent, info_name=path[-1] if path else "neurogen")
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*path, name), context)


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
        return neurogen_command(*fixed, *arguments, stdin=stdin)

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

    monkeypatch.setattr("neurogen.models.language_model.load_model", load_model)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The three first samplers, whatever else is installed, in a registry of this test alone."""
    own = Registry(
        [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name in ("greedy", "topk", "topp")]
    )
    monkeypatch.setattr("neurogen.registry.registry._default", own)
    return own


def offer(registry: Registry, cls: type[Sampler]) -> None:
    class Plugin:
        __name__ = "strange_plugin"

        @hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return [cls]

    registry.register(Plugin(), distribution="neurogen-strange", version="9.9")
