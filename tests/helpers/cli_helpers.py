"""Running the command in this process or in one of its own, with what its tests share."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
from click.testing import CliRunner, Result

from neurogen import Registry, Sampler, hookimpl
from neurogen.cli import main

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


def offer(registry: Registry, *classes: type[Sampler]) -> None:
    class Plugin:
        __name__ = "strange_plugin"

        @hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return list(classes)

    registry.register(Plugin(), distribution="neurogen-strange", version="9.9")
