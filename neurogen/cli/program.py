"""The command `neurogen` itself: its subcommands, found lazily, and what becomes of an error.

Modules of subcommands import torch and other heavy packages inside their functions only, so that `--help` stays fast.
Exit codes: 0 done, 1 an error or a failed prompt, 2 wrong usage, 130 Ctrl-C, 141 the reader of stdout went away, 143
SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from neurogen import __version__
from neurogen.cli.common import Settings, debug_option, tell
from neurogen.errors import NeurogenError
from neurogen.registry import default_registry

__all__ = ["main"]

COMMANDS = {
    "run": "neurogen.cli.run",
    "chat": "neurogen.cli.chat",
    "explain": "neurogen.cli.explain",
    "replay": "neurogen.cli.replay",
    "train": "neurogen.cli.train",
    "diagnose": "neurogen.cli.diagnose",
    "bench": "neurogen.cli.bench",
    "tokenizer": "neurogen.cli.tokenizer",
    "samplers": "neurogen.cli.samplers",
    "processors": "neurogen.cli.processors",
    "plugins": "neurogen.cli.plugins",
}
"""Subcommand -> the module whose `command` it is, in the order of the help."""

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
DEBUG_VARIABLE = "NEUROGEN_DEBUG"


class Program(click.Group):
    """The group of all subcommands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; when nobody reads its output any more, end without a word, as Unix tools do."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # here, since click's own main would make it exit code 1
            _drop_what_is_unwritten()
            ctx.exit(EXIT_CLOSED_PIPE)

    def main(  # type: ignore[override]  # always ends the process, as click's own does in standalone mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line and end the process with its exit code."""
        settings = Settings(debug=os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"))
        extra = {**extra, "standalone_mode": False, "obj": settings}
        try:
            code = super().main(args, prog_name, **extra)
        except click.Abort:
            tell("Interrupted.")
            code = EXIT_INTERRUPTED
        except click.ClickException as error:
            code = error.exit_code
            with suppress(OSError):  # what cannot be said still ends with its exit code
                error.show()
        except (NeurogenError, OSError) as error:
            if settings.debug:
                traceback.print_exc()
            tell(f"Error: {error}")
            code = EXIT_ERROR
        sys.exit(code or 0)


def _drop_what_is_unwritten() -> None:
    """Keep the interpreter from complaining when it flushes a closed pipe on its way out."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="neurogen")
@click.option(
    "--only-plugins",
    metavar="NAME,...",
    help="Load no other plugins than these (names or distributions), whatever is installed.",
)
@debug_option
def main(only_plugins: str | None) -> None:
    """Decode with language models through sampler plugins, and train them with greedy by contract."""
    if only_plugins is not None:
        default_registry().restrict(filter(None, map(str.strip, only_plugins.split(","))), "--only-plugins")
