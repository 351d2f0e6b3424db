"""The command `neurogen` itself: its subcommands, found lazily, their defaults, and how errors are reported.

Modules of subcommands import torch and other heavy packages inside their functions only, so that `--help` stays fast.
Exit codes: 0 done, 1 an error or a failed prompt, 2 wrong usage or configuration, 130 Ctrl-C, 141 the reader of stdout
went away, 143 SIGTERM.
"""

from __future__ import annotations

import atexit
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from neurogen import __version__
from neurogen.cli.common import Settings, ShownContext, commands_of, debug_option, tell
from neurogen.cli.compiling_notice import watch_compiling
from neurogen.cli.configuration import (
    ConfigurationError,
    Section,
    check_variables,
    name_variables,
    plugin_lists,
    read_configuration,
    source_of,
)
from neurogen.errors import NeurogenError
from neurogen.files import NO_ROOM
from neurogen.registry.registry import default_registry

__all__ = ["main"]

COMMANDS = (
    "run", "chat", "compare", "explain", "replay", "train", "diagnose", "bench", "tokenizer", "samplers", "processors",
    "plugins", "conformance", "new-sampler", "config", "completion",
)  # fmt: skip
"""Subcommands in the order of the help; each is the `command` of the module of its name."""

NO_NAME = "Error: A name of a file that was given holds the character NUL, which no file's name has."
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141
DEBUG_VARIABLE = "NEUROGEN_DEBUG"


class Program(click.Group):
    """The group of all subcommands."""

    context_class = ShownContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"neurogen.cli.{cmd_name.replace('-', '_')}").command
        for path, one in commands_of(command, (cmd_name,)):
            one.context_class = ShownContext
            name_variables(one, path)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the configuration as soon as the options before the subcommand are known."""
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.ensure_object(Settings)
        try:
            self._configure(ctx)
        except ConfigurationError:
            if not ctx.resilient_parsing:  # a shell that completes a word has no place for it
                raise
        return ctx

    def _configure(self, ctx: click.Context) -> None:
        """Restrict the plugins first, since finding out what a key means may load some."""
        only = ctx.params.get("only_plugins")
        if only is not None:
            default_registry().restrict(filter(None, map(str.strip, only.split(","))), "--only-plugins")
        files = read_configuration(ctx.params.get("config_file"))
        for file in files:
            lists = plugin_lists(file)
            if "allow" in lists:
                default_registry().restrict(lists["allow"], f"plugins.allow of {file.path}")
            default_registry().exclude(lists.get("disable", ()), f"plugins.disable of {file.path}")
        ctx.default_map = defaults = Section(self)
        for file in reversed(files):
            defaults.read(file, ctx)
        check_variables(self, ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; where the reader of its output goes away, end silently, as Unix tools do."""
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
        watch_compiling()
        try:
            code = super().main(args, prog_name, **extra)
        except click.Abort:
            _trace(settings)
            tell("Interrupted.")
            code = EXIT_INTERRUPTED
        except click.ClickException as error:
            _trace(settings)
            code = error.exit_code
            _name_source(error)
            tell(_usage(error))
        except (NeurogenError, OSError) as error:
            _trace(settings)
            tell(f"Error: {_in_words(error)}")
            code = EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_ERROR
        except Exception as error:
            _trace(settings)
            tell(NO_NAME if "embedded null" in str(error) else _bug(error, settings))
            code = EXIT_ERROR
        _forget_colorama()
        sys.exit(code or 0)


def _trace(settings: Settings) -> None:
    if settings.debug:
        tell(traceback.format_exc().rstrip())


def _in_words(error: NeurogenError | OSError) -> str:
    """The message for an error; a full disk where no file is named means standard output."""
    if isinstance(error, NeurogenError):
        return error.reason
    if error.strerror is None:
        return str(error)
    if error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}."
    return f"Standard output cannot be written: {error.strerror}." if error.errno in NO_ROOM else str(error)


def _bug(error: Exception, settings: Settings) -> str:
    """The message for an unexpected exception."""
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    how = "the traceback above" if settings.debug else "what the same command shows with --debug after it"
    return f"Error: {what}. This is a bug of neurogen, or of a plugin: please report it with {how}."


def _usage(error: click.ClickException) -> str:
    """What click says of an error, with the usage of the command where that was wrong."""
    said = io.StringIO()
    error.show(said)
    return said.getvalue().removesuffix("\n")


def _name_source(error: click.ClickException) -> None:
    """Add to the message where a wrong value comes from, unless it was typed."""
    ctx, param = getattr(error, "ctx", None), getattr(error, "param", None)
    source = source_of(ctx, param) if ctx is not None and param is not None else None
    if source is not None:
        told = f"{error.message.rstrip('.')}. It comes from {source}."
        error.message = told  # type: ignore[misc]  # click builds the text around it when it is shown


def _forget_colorama() -> None:
    """Keep colorama, which tqdm starts where it is installed, from writing to the terminal on the way out."""
    module = sys.modules.get("colorama.initialise")
    if module is not None:
        atexit.unregister(module.reset_all)


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
@click.option(
    "--config-file",
    metavar="FILE.toml",
    envvar="NEUROGEN_CONFIG_FILE",
    help="Defaults of options, instead of neurogen.toml and pyproject.toml here. See neurogen config.",
)
@debug_option
def main(only_plugins: str | None, config_file: str | None) -> None:
    """Decode with language models through sampler plugins, and train them with greedy by contract."""
